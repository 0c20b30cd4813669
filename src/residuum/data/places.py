"""Where an image lies: in a file of its own, or in a part of a file that holds many. No torch.

Folders and lists name files. Tar shards, Arrow files, arrays and packed files are gone through once, and every image in
them is then a `Slice` that any process reads by itself, in any order.
"""

import io
import os
import stat
from typing import Any, NamedTuple

from residuum.errors import DataError, quoted


class Slice(NamedTuple):
    """`size` bytes of a file from `offset` on, and what they are called there.

    They are those of an image file, or with a `shape` (H, W, C) the values of its pixels, uint8.
    """

    file: str
    offset: int
    size: int
    name: str
    shape: tuple[int, int, int] | None = None


Place = str | Slice  # the path of a file, or a part of one


def shown(place: Place, longest: int = 200) -> str:
    """A place as a message says it: `'a/1.jpg'`, or `'a/1.jpg' in 'shard.tar'`."""
    if isinstance(place, str):
        return quoted(place, longest)
    return f"{quoted(place.name, longest // 2)} in {quoted(place.file, longest // 2)}"


def name_of(place: Place, root: str) -> str:
    """What an image is called whatever holds it and wherever that lies: its path below `root`, with `/` everywhere."""
    return place.name if isinstance(place, Slice) else relative(place, root)


def relative(path: str, root: str) -> str:
    """A file's path below a folder, with `/` on every system; the whole path of a file elsewhere."""
    inside = root.rstrip("/" + os.sep)
    if not path.startswith((f"{inside}/", f"{inside}{os.sep}")):
        return path.replace(os.sep, "/")
    return path[len(inside) + 1 :].replace(os.sep, "/")


class SliceFile(io.RawIOBase):
    """A slice as a file of its own, of which only what is asked for is read; raises `OSError`."""

    def __init__(self, place: Slice) -> None:
        super().__init__()
        if not stat.S_ISREG(os.stat(place.file).st_mode):  # noqa: PTH116
            raise OSError(f"{place.file} is no regular file any more")
        self.file = open(place.file, "rb", buffering=0)  # noqa: PTH123, SIM115 (`close` closes it)
        self.place, self.at = place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.place.size}[whence]
        if start + offset < 0:
            raise OSError("a place before the beginning")
        self.at = start + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.place.size - self.at)]
        self.file.seek(self.place.offset + self.at)
        count = self.file.readinto(view) if len(view) else 0
        self.at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def read_slice(place: Slice) -> bytearray:
    """The bytes of a slice; raises `DataError`.

    The file is opened each time, so that threads and processes share nothing. It is not mapped into memory, where a
    file that becomes shorter meanwhile would end the process.
    """
    data = bytearray(place.size)
    have, view = 0, memoryview(data)
    try:
        if not stat.S_ISREG(os.stat(place.file).st_mode):  # noqa: PTH116 (called for each image)
            raise DataError(f"{quoted(place.file, 200)} is no regular file any more")  # a pipe would be waited for
        with open(place.file, "rb", buffering=0) as file:  # noqa: PTH123
            file.seek(place.offset)
            while have < place.size and (more := file.readinto(view[have:])):  # Linux gives at most 2 GiB at once
                have += more
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{shown(place)} cannot be read: {reason}") from None
    if have < place.size:
        raise DataError(f"{shown(place)} cannot be read: the file has become shorter since it was looked through")
    return data
