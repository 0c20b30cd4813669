"""Files that are whole or not there: written beside their place and moved into it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from residuum.errors import ResiduumError, quoted


def write_whole(path: Path, write: Callable[[Path], object], error: type[ResiduumError]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    If anything fails, a file that was there before is untouched and nothing half-written is left. What the file system
    refuses is raised as `error`; torch and safetensors report a full disk as errors of their own.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # the ending may tell the writer the format
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as failure:
        with contextlib.suppress(OSError):  # its folder is not there or cannot be written: nothing was left
            partial.unlink(missing_ok=True)
        if isinstance(failure, ResiduumError):
            raise
        if isinstance(failure, OSError | RuntimeError) or type(failure).__name__ == "SafetensorError":
            reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
            raise error(f"cannot write {path}: {reason}; free space or choose another folder") from failure
        raise


def write_text(path: Path, text: str, error: type[ResiduumError]) -> None:
    """`write_whole` for text, in UTF-8."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"), error)


@contextlib.contextmanager
def new_folder(path: Path, error: type[ResiduumError]) -> Iterator[Path]:
    """A folder to fill, which is moved to `path` in one step when the block ends; if it fails, nothing of it is left.

    Raises `error` where something is at `path` already, and where the folder cannot be made.
    """
    if os.path.lexists(path):
        raise error(f"{quoted(str(path), 200)} exists already; choose another folder")
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        os.makedirs(partial)  # noqa: PTH103
    except (OSError, ValueError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) else failure
        raise error(f"the folder {quoted(str(path), 200)} cannot be made: {reason}; choose another") from None
    try:
        yield partial
        partial.rename(path)
    except BaseException as failure:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(failure, OSError) and not isinstance(failure, BrokenPipeError):  # a reader of ours that has left
            raise error(f"the folder {quoted(str(path), 200)} cannot be written: {failure.strerror}") from failure
        raise


def read_text(path: Path, error: type[ResiduumError], *, most: int = 2**24) -> str:
    """The text of a file in UTF-8, or from a pipe; raises `error` for one that cannot be read or has over `most` bytes.

    A device such as /dev/zero never ends.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise error(f"{quoted(str(path))} has more than {most:,} bytes; a text of this kind has fewer")
        return content.decode("utf-8")
    except (OSError, ValueError) as failure:  # a name with a null character, bytes that are no UTF-8
        if isinstance(failure, error):
            raise
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
        raise error(f"{quoted(str(path))} cannot be read: {reason}") from None


def cache_folder() -> Path:
    """Where downloads are kept: the folder in `RESIDUUM_CACHE`, or ~/.cache/residuum. It need not be there yet."""
    folder = Path(os.environ.get("RESIDUUM_CACHE") or "~/.cache/residuum")
    try:
        return folder.expanduser()
    except RuntimeError:  # a user without a home
        return folder
