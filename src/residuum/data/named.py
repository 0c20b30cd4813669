"""Image files as people name them: files, folders, patterns such as `photos/**/*.jpg`, and lists. No torch."""

import glob
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from residuum.data.decoding import is_image
from residuum.errors import DataError, quoted

LIST = "-"  # stands for the list on standard input
PATIENCE = 0.05  # seconds that a batch which has begun waits for the next name
_PIECE = 1 << 16  # bytes of a list that are read at once, at most


def named_files(words: Iterable[str]) -> list[str]:
    """The image files that words name, in the order of the words, those of a folder or pattern sorted by path.

    A folder gives all files in it and below it whose names end like those of images, hidden ones left out. A word that
    is no file but has `*`, `?` or `[` is a pattern, in which `**` stands for any folders. Any other word stands for
    itself, whether there is such a file or not. Raises `DataError` for a folder or pattern without an image.
    """
    found: list[str] = []
    for word in words:
        if os.path.isdir(word):  # noqa: PTH112
            inside = sorted(_below(word))
            if not inside:
                raise DataError(f"the folder {quoted(word, 200)} has no image file in it")
            found += inside
        elif glob.has_magic(word) and not os.path.lexists(word):
            matches = sorted(path for path in glob.glob(word, recursive=True) if is_image(path))  # noqa: PTH207
            if not matches:
                raise DataError(f"no image file matches {quoted(word, 200)}")
            found += matches
        else:
            found.append(word)
    return found


def _below(folder: str) -> Iterator[str]:
    """Image files in a folder and below it; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {quoted(error.filename, 200)} cannot be read: {error.strerror}")

    for path, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(path)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(path, name) for name in files if is_image(name) and not name.startswith("."))  # noqa: PTH118


def listed_files(file: BinaryIO) -> Iterator[str]:
    """The names in a list, one a line, each as soon as its line is there; empty lines are left out.

    `file` is opened without a buffer, so that nothing is held back and nothing is locked while it is waited for.
    """
    rest = b""
    while piece := file.read(_PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (os.fsdecode(name) for line in lines if (name := line.removesuffix(b"\r")))
    if name := rest.removesuffix(b"\r"):
        yield os.fsdecode(name)


class Arrivals:
    """Names as they come, some at a time: a batch is never held back for names that are still to come.

    A sequence is there as a whole. Anything else is asked for names by a thread of its own, up to `ahead` of them
    before they are taken; what it raises is `error` once it is `over`.
    """

    def __init__(self, names: Iterable[str], ahead: int) -> None:
        self.over = False
        self.error: BaseException | None = None  # what asking for names ended in
        self.given = 0
        self.names = names if isinstance(names, Sequence) else None
        self.closed = threading.Event()
        self.queue: queue.Queue[tuple[str | None, BaseException | None]] = queue.Queue(ahead)
        if self.names is None:
            # A daemon: whoever waits for a line of a terminal cannot be called off.
            threading.Thread(target=self._ask, args=(names,), name="image-names", daemon=True).start()

    def _ask(self, names: Iterable[str]) -> None:
        error = None
        try:
            for name in names:
                if not self._put((name, None)):
                    return
        except BaseException as raised:
            error = raised
        self._put((None, error))

    def _put(self, item: tuple[str | None, BaseException | None]) -> bool:
        while not self.closed.is_set():
            try:
                self.queue.put(item, timeout=1.0)
            except queue.Full:
                continue
            return True
        return False

    def take(self, most: int, *, wait: bool) -> list[str]:
        """Up to `most` names. None at all where the end was reached (`over`), or where none is there and not `wait`."""
        if self.names is not None:
            taken = list(self.names[self.given : self.given + most])
            self.given += len(taken)
            self.over = self.given >= len(self.names)
            return taken
        found: list[str] = []
        while len(found) < most and not self.over:
            try:
                name, error = self.queue.get(block=wait or bool(found), timeout=PATIENCE if found else None)
            except queue.Empty:
                break
            if name is None:
                self.over, self.error = True, error
            else:
                found.append(name)
        return found

    def close(self) -> None:
        """Ask for no more names."""
        self.closed.set()
