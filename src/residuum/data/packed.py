r"""Packed files: all images of a dataset in one file, with their names, labels and splits.

    16 bytes      b"residuum packed\\n"
    images        one behind the other: files as they were, or the values of pixels (H, W, C), uint8
    index         JSON, compressed by zlib
    32 bytes      b"residuum index 1", where the index begins and how many bytes it has (uint64, little-endian)

They are made by `residuum data pack`.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from residuum.data.listing import SPLITS, Catalog, Found, Label, labels_of, sort_out
from residuum.data.places import Slice
from residuum.errors import DataError, first_line, quoted
from residuum.files import write_whole

ENDING = ".packed"
_MAGIC, _FOOT = b"residuum packed\n", b"residuum index 1"
_LARGEST_INDEX = 1 << 32  # bytes, unpacked
Row = tuple[str, str, int, Label, tuple[int, int, int] | None]  # split, name, bytes, label, shape of raw pixels


def is_packed(path: str) -> bool:
    """Whether a file begins as a packed one does."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def write_packed(
    path: Path,
    rows: Iterable[tuple[Row, bytes | bytearray]],
    *,
    classes: tuple[str, ...],
    channels: int,
    several: bool,
    stamp: str,
    weights: Mapping[str, float],
) -> None:
    """Write images with what is known of each; the file is whole or not there. Raises `DataError`."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(_MAGIC)
            listed = []
            for (split, name, size, label, shape), data in rows:
                file.write(data)
                listed.append([split, name, size, label, shape])
            begin = file.tell()
            index = {"classes": classes, "channels": channels, "several": several, "stamp": stamp, "images": listed}
            index["weights"] = dict(weights)
            file.write(zlib.compress(json.dumps(index).encode()))
            file.write(_FOOT + struct.pack("<QQ", begin, file.tell() - begin))

    write_whole(path, write, DataError)


def scan_packed(path: str) -> Catalog:
    """The catalog of a packed file; raises `DataError` for one that is cut off or damaged."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            begin, index = _index(file)
        several = bool(index["several"])
        classes = tuple(map(str, index["classes"]))
        found, offset = [], len(_MAGIC)
        for split, name, size, label, shape in index["images"]:
            if split not in SPLITS or size < 0 or (shape is not None and size != shape[0] * shape[1] * shape[2]):
                raise ValueError("its index makes no sense")
            numbers = labels_of(label if isinstance(label, int) else tuple(label))
            place = Slice(path, offset, size, str(name), None if shape is None else tuple(shape))
            weight = float(index.get("weights", {}).get(name, 1.0))
            found.append(Found(split, str(name), place, tuple(classes[n] for n in numbers), size, weight))
            offset += size
        if offset != begin:
            raise ValueError("its images are not all there")
        channels, stamp = int(index["channels"]), str(index["stamp"])
    except OSError as error:
        raise DataError(f"{quoted(path, 200)} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, zlib.error, struct.error) as error:
        raise DataError(
            f"{quoted(path, 200)} is a damaged packed file ({first_line(error)}); pack or fetch it again"
        ) from None
    return sort_out(path, found, classes=classes, channels=channels, several=several, stamp=stamp)


def _index(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Where the index begins, and what it says."""
    end = file.seek(0, 2)
    file.seek(max(0, end - len(_FOOT) - 16))
    foot = file.read()
    if not foot.startswith(_FOOT):
        raise ValueError("it is cut off: its end is missing")
    begin, size = struct.unpack("<QQ", foot[len(_FOOT) :])
    if begin + size + len(foot) != end:
        raise ValueError("its end does not fit its length")
    file.seek(begin)
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(file.read(size), _LARGEST_INDEX)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("its index is not whole")
    index = json.loads(text)
    if not isinstance(index, dict):
        raise ValueError("its index is no table")
    return begin, index
