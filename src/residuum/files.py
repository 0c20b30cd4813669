"""Files that are whole or not there: written beside their place and moved into it."""

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from residuum.errors import ResiduumError, quoted


def write_whole(path: Path, write: Callable[[Path], object], error: type[ResiduumError]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    If anything fails, a file that was there before is untouched and nothing half-written is left. Of several processes
    that write the same file at once, each writes a whole one and the last stays. A link stays one: what it leads to is
    replaced. Raises `error` for a folder, pipe or device, before anything is written, and for what the file system
    refuses; torch and safetensors report a full disk as errors of their own.
    """
    try:
        place = replaceable(path, error)
        with place_beside(place.with_name(path.name)) as partial:  # a link's own ending may tell the format
            write(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(place)
    except BaseException as failure:
        if isinstance(failure, ResiduumError):
            raise
        if isinstance(failure, OSError | RuntimeError) or type(failure).__name__ == "SafetensorError":
            reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
            raise error(f"cannot write {path}: {reason}; free space or choose another folder") from failure
        raise


def replaceable(path: Path, error: type[ResiduumError]) -> Path:
    """The place of the file that a path names, which is behind a link; raises `error` for what is no regular file."""
    if path.exists() and not path.is_file():
        raise error(f"{quoted(str(path), 200)} is no regular file; choose another")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_text(path: Path, text: str, error: type[ResiduumError]) -> None:
    """`write_whole` for text, in UTF-8; raises `error` also for a text that holds a name which is no UTF-8."""
    try:
        content = text.encode()
    except UnicodeEncodeError as failure:
        line = text[: failure.end].rpartition("\n")[2]
        raise error(f"{path.name} would hold a name that is no UTF-8, {quoted(line[-80:])}; rename it") from None
    write_whole(path, lambda partial: partial.write_bytes(content), error)


@contextlib.contextmanager
def new_folder(path: Path, error: type[ResiduumError]) -> Iterator[Path]:
    """A folder to fill, which is moved to `path` in one step when the block ends; if it fails, nothing of it is left.

    Raises `error` where something is at `path` already, and where the folder cannot be made.
    """
    if os.path.lexists(path):
        raise error(f"{quoted(str(path), 200)} exists already; choose another folder")
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(path.parent, exist_ok=True)  # noqa: PTH103
            partial = stack.enter_context(place_beside(path, folder=True))
        except (OSError, ValueError) as failure:
            reason = failure.strerror if isinstance(failure, OSError) else failure
            raise error(f"the folder {quoted(str(path), 200)} cannot be made: {reason}; choose another") from None
        try:
            yield partial
            partial.rename(path)
        except BrokenPipeError:  # a reader of ours that has left
            raise
        except OSError as failure:
            raise error(f"the folder {quoted(str(path), 200)} cannot be written: {failure.strerror}") from failure


@contextlib.contextmanager
def place_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """An empty file or folder beside `path`, to fill and to move; no other process has it, and none is left at the end.

    Whoever fills one holds its lock, which the system releases however a process ends: those without a lock are of
    processes that were killed, and are removed. Raises `OSError` and `ValueError` as the file system does.
    """
    # A file keeps its ending: it may tell a writer the format.
    before, after = (f".{path.name}.", ".partial") if folder else (f".{path.stem}.", f".partial{path.suffix}")
    for left in path.parent.glob(f"{glob.escape(before)}{'[0-9a-f]' * 8}{glob.escape(after)}"):
        with _held(left) as held:
            if held:
                _remove(left)
    while True:
        partial = path.with_name(f"{before}{secrets.token_hex(4)}{after}")
        partial.mkdir() if folder else partial.touch(exist_ok=False)
        with _held(partial):
            if not partial.exists():  # another process has just taken it for one that was left
                continue
            try:
                yield partial
            finally:
                _remove(partial)
            return


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder; gives whether it could be had. Windows moves no file that is open: never."""
    lock = None
    if os.name != "nt":
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks what may be written
    try:
        yield lock is not None and try_lock(lock)
    finally:
        if lock is not None:
            os.close(lock)


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # its folder has gone, or cannot be written any more
            path.unlink(missing_ok=True)


def try_lock(lock: int, shared: bool = False) -> bool:
    """Whether this process has the lock of an open file now, alone or `shared`; the system releases it at its end."""
    try:
        import fcntl
    except ImportError:  # Windows: of one byte far behind what is written, as locked bytes cannot be read there
        import msvcrt

        try:
            os.lseek(lock, 2**20, os.SEEK_SET)
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def read_text(path: Path, error: type[ResiduumError], *, most: int = 2**24) -> str:
    """The text of a file in UTF-8, or from a pipe; raises `error` for one that cannot be read or has over `most` bytes.

    A device such as /dev/zero never ends.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise error(f"{quoted(str(path))} has more than {most:,} bytes; a text of this kind has fewer")
        return content.decode("utf-8-sig")  # editors of Windows put a mark before the text
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
