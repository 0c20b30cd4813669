"""Arrays of numpy: `.npz` files with images as uint8 (N, H, W) or (N, H, W, C), and labels as whole numbers (N,).

Their keys may be `images` and `labels`, or have splits before or behind: `train_images` as MedMNIST has them, `x_test`
as Keras does. Labels (N, K) of zeros and ones say which of K classes each image is of.
"""

import hashlib
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residuum.data.listing import Catalog, Found, class_order, sort_out, split_called
from residuum.data.places import Slice
from residuum.errors import DataError, first_line, quoted
from residuum.files import cache_folder, write_whole

_CLASSES = ("classes", "class_names", "label_names")  # keys of an array of texts
_HEADER = 30  # bytes of a zip's local header before name and extra field
_PIECE = 1 << 20


@dataclass(frozen=True)
class Array:
    """An array in a file: its key, shape and type, and how many bytes of header come before its values."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    header: int

    @property
    def is_images(self) -> bool:
        """Whether it can be images."""
        return self.dtype == np.uint8 and (len(self.shape) == 3 or (len(self.shape) == 4 and self.shape[3] in (1, 3)))

    @property
    def is_labels(self) -> bool:
        """Whether it can be labels."""
        return self.dtype.kind in "iub" and len(self.shape) in (1, 2) and self.shape[0] > 0

    @property
    def split(self) -> str:
        """The split that its key says; train where it says none."""
        named = [split for word in self.key.split("_") if (split := split_called(word)) is not None]
        return named[0] if named else "train"


def scan_arrays(path: str) -> Catalog:
    """The catalog of a `.npz` file; raises `DataError` that lists its keys where they are not clear."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [array for entry in archive.infolist() if (array := _header(archive, entry)) is not None]
            pairs = _pairs(path, arrays)
            stamp = ",".join(f"{entry.filename}={entry.CRC:08x}" for entry in archive.infolist())
            names = _class_names(archive, arrays)
            found, kinds = [], {}
            for split, (images, labels) in pairs.items():
                rows, kinds[split] = _rows(path, archive, split, images, labels, names)
                found += rows
    except DataError:
        raise
    except Exception as error:  # zips and arrays meet damage with errors of many kinds
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise DataError(f"{quoted(path, 200)} cannot be read as arrays of numpy: {reason}") from None
    images, labels = pairs["train"]
    several = kinds["train"]
    other = next((split for split, kind in kinds.items() if kind != several), None)
    if other is not None:
        raise DataError(
            f"{quoted(path, 200)} has labels (N,) in one split and (N, classes) in another, train and {other}; "
            "let both be of one kind"
        )
    classes = names or tuple(
        map(str, range(labels.shape[1]))
        if several
        else class_order({row.labels[0] for row in found if row.split == "train"})
    )
    channels = images.shape[3] if len(images.shape) == 4 else 1
    return sort_out(path, found, classes=classes, channels=channels, several=several, stamp=stamp)


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array | None:
    """What an array is, without its values."""
    if not entry.filename.endswith(".npy"):
        return None
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        header = file.tell()
    key = entry.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise ValueError(f"{key} holds objects of Python, which may be code")
    if fortran and len(shape) > 1:
        raise ValueError(f"{key} is stored column by column; save numpy.ascontiguousarray of it")
    return Array(key, shape, dtype, header)


def _pairs(path: str, arrays: list[Array]) -> dict[str, tuple[Array, Array]]:
    """The images and labels of each split."""
    pairs: dict[str, tuple[Array, Array]] = {}
    for split in ("train", "val", "test"):
        here = [array for array in arrays if array.split == split]
        images = [array for array in here if array.is_images]
        labels = [
            array for array in here if array.is_labels and array not in images
            and array.shape[0] in {image.shape[0] for image in images}
        ]  # fmt: skip
        if len(images) == 1 and len(labels) == 1:
            pairs[split] = (images[0], labels[0])
        elif images or labels or split == "train":
            have = ", ".join(f"{quoted(a.key, 30)} {a.dtype} {a.shape}" for a in arrays[:8])
            raise DataError(
                f"{quoted(path, 100)} does not say which arrays are the images, uint8 (N, H, W) or (N, H, W, 1 or 3), "
                f"and the labels, whole numbers (N,) or (N, classes), of {split}; it holds {have or 'no array'}"
            )
    return pairs


def _class_names(archive: zipfile.ZipFile, arrays: list[Array]) -> tuple[str, ...] | None:
    for array in arrays:
        if array.key in _CLASSES and array.dtype.kind == "U" and len(array.shape) == 1:
            return tuple(str(name) for name in _values(archive, array))
    return None


def _values(archive: zipfile.ZipFile, array: Array) -> NDArray[Any]:
    with archive.open(f"{array.key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _rows(
    path: str, archive: zipfile.ZipFile, split: str, images: Array, labels: Array, names: tuple[str, ...] | None
) -> tuple[list[Found], bool]:
    """The images of a split, and whether each may be of several classes."""
    file, begin = _where(path, archive, images)
    values = _values(archive, labels)
    several = values.ndim == 2 and values.shape[1] > 1
    if several and not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{quoted(path, 200)} has labels {quoted(labels.key, 30)} (N, {values.shape[1]}) that are not all 0 or 1"
        )
    if not several:
        values = values.reshape(len(values), -1)[:, 0].astype(np.int64)
    if values.min(initial=0) < 0 or (names is not None and not several and values.max(initial=0) >= len(names)):
        raise DataError(f"{quoted(path, 200)} has labels {quoted(labels.key, 30)} that are no number of a class")
    shape = (images.shape[1], images.shape[2], images.shape[3] if len(images.shape) == 4 else 1)
    size = math.prod(shape)
    found = []
    for i, value in enumerate(values):
        numbers = np.flatnonzero(value).tolist() if several else [int(value)]
        called = tuple(names[n] if names is not None else str(n) for n in numbers)
        name = f"{split}/{i:08d}"
        found.append(Found(split, name, Slice(file, begin + i * size, size, name, shape), called, size))
    return found, several


def _where(path: str, archive: zipfile.ZipFile, array: Array) -> tuple[str, int]:
    """The file in which an array's values lie as they are, and from where on.

    That of a compressed array is written into the user's cache, once.
    """
    entry = archive.getinfo(f"{array.key}.npy")
    expected = array.header + math.prod(array.shape) * array.dtype.itemsize
    if entry.file_size != expected:
        raise ValueError(f"{array.key} has {entry.file_size:,} bytes where its shape takes {expected:,}")
    if entry.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:  # noqa: PTH123
            file.seek(entry.header_offset)
            local = file.read(_HEADER)
            name, extra = struct.unpack("<HH", local[26:30])
        return path, entry.header_offset + _HEADER + name + extra + array.header
    status = os.stat(path)  # noqa: PTH116
    whole = os.path.abspath(path)  # noqa: PTH100
    about = f"{whole}\0{status.st_size}\0{status.st_mtime_ns}\0{array.key}"
    digest = hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    place = cache_folder() / "arrays" / f"{digest}.npy"
    if not (place.is_file() and place.stat().st_size == expected):
        place.parent.mkdir(parents=True, exist_ok=True)

        def unpack(partial: Path) -> None:
            with archive.open(entry) as source, partial.open("wb") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)

        own = place.with_name(f"{digest}-{os.getpid()}.npy")  # processes of one run may unpack at the same time
        write_whole(own, unpack, DataError)
        own.replace(place)
    return str(place), array.header
