"""`residuum data pack`: a dataset of any kind as one packed file, images as they are or scaled down and decoded."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from residuum.data.ahead import READERS, read_ahead
from residuum.data.catalog import NAMED, scan
from residuum.data.decoding import read_image
from residuum.data.listing import Catalog, Label, text_digest
from residuum.data.packed import Row, write_packed
from residuum.data.places import Place, Slice, read_slice, shown
from residuum.errors import DataError, quoted

SAY_EVERY = 10.0  # seconds
_AHEAD = 4  # images that are read before they are written, for each thread


@dataclass(frozen=True)
class Packed:
    """What was packed: images, bytes of the file, and why each image that is not in it was left out."""

    # the file
    path: Path
    # number of images in it
    images: int
    # bytes of the file
    size: int
    # of each image that was left out: which, and why
    skipped: tuple[str, ...]


def pack(
    source: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    skip_bad_images: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Packed:
    """Write a dataset as one file.

    Without a `size` the bytes of each image are copied; a run on the packed file ends with the same weights as one on
    the source. With a `size` images are decoded, scaled down until their shorter side has so many pixels (smaller ones
    stay), and kept as values of pixels: 3 bytes each, and nothing left to decode. Raises `DataError`: for what cannot
    be written, and, unless bad images are skipped, for the first one that cannot be decoded.
    """
    path = Path(out)
    if path.exists():
        raise DataError(f"{quoted(str(path), 200)} exists already; choose another --out")
    catalog = scan(source)
    if catalog.name in NAMED:
        raise DataError(f"{catalog.name} is a named dataset, which is in one file already")
    count = sum(len(listed) for listed in catalog.files.values())
    skipped: list[str] = []
    written = 0

    def counted() -> Iterator[tuple[Row, bytes | bytearray]]:
        nonlocal written
        told = time.monotonic()
        for row, data in _rows(catalog, size, skip_bad_images, skipped):
            yield row, data
            written += 1
            if time.monotonic() - told > SAY_EVERY:
                told = time.monotonic()
                say(f"{written + len(skipped):,} of {count:,} images")

    raw = any(isinstance(p, Slice) and p.shape is not None for listed in catalog.files.values() for p, _ in listed)
    write_packed(
        path, counted(), classes=catalog.classes, channels=3 if size is not None else catalog.channels,
        several=catalog.several,
        weights={catalog.name_of(place): weight for place, weight in catalog.weights.items()},
        stamp="" if size is None and not raw else text_digest([catalog.digest, str(size)]),
    )  # fmt: skip
    return Packed(path, written, path.stat().st_size, tuple(skipped))


def _rows(
    catalog: Catalog, size: int | None, skip_bad_images: bool, skipped: list[str]
) -> Iterator[tuple[Row, bytes | bytearray]]:
    """Each image as it will be written, in the catalog's order; threads read and scale ahead of the writer."""
    entries = ((split, place, label) for split, listed in catalog.files.items() for place, label in listed)

    def read(entry: tuple[str, Place, Label]) -> tuple[Row, bytes | bytearray] | DataError:
        split, place, label = entry
        try:
            data, shape = _copied(place) if size is None else _scaled(place, size)
        except DataError as error:
            return error
        return (split, catalog.name_of(place), len(data), label, shape), data

    with contextlib.closing(read_ahead(entries, read, READERS * _AHEAD)) as images:
        for _, done in images:
            if not isinstance(done, DataError):
                yield done
            elif skip_bad_images:
                skipped.append(str(done))
            else:
                raise DataError(f"{done}; remove or mend it, or leave it out by --skip-bad-images")


def _copied(place: Place) -> tuple[bytes | bytearray, tuple[int, int, int] | None]:
    if isinstance(place, Slice):
        return read_slice(place), place.shape
    try:
        return Path(place).read_bytes(), None
    except OSError as error:
        raise DataError(f"{shown(place)} cannot be read: {error.strerror}") from None


def _scaled(place: Place, size: int) -> tuple[bytes, tuple[int, int, int]]:
    """The values of an image's pixels, (H, W, 3), its shorter side at most `size`."""
    from torchvision.transforms.v2 import functional

    image = read_image(place, 3)
    if min(image.shape[1:]) > size:
        image = functional.resize(image, [size], antialias=True)
    channels, height, width = image.shape
    return image.permute(1, 2, 0).contiguous().numpy().tobytes(), (height, width, channels)
