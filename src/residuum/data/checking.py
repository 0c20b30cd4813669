"""`residuum data check`: every image of a dataset decoded once, and what is wrong with them, or odd, counted."""

import contextlib
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from residuum.data.ahead import READERS, read_ahead
from residuum.data.catalog import NAMED, scan
from residuum.data.decoding import mode_of, read_image
from residuum.data.listing import Catalog, Label, labels_of
from residuum.data.places import Place
from residuum.errors import DataError

SAY_EVERY = 10.0  # seconds
_AHEAD = 8  # images that are read before they are looked at, for each thread


@dataclass(frozen=True)
class Seen:
    """An image: its split, name and classes, its height, width and Pillow's mode, and a digest of its pixels as RGB."""

    split: str
    name: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    mode: str
    digest: bytes


@dataclass(frozen=True)
class Check:
    """What was found. A group is a tuple of names."""

    # what the dataset holds
    catalog: Catalog
    # split to class to number of images
    counts: Mapping[str, Mapping[str, int]]
    # of each image that cannot be decoded: which, and why
    bad: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]  # height and width of each image that can be decoded, by area
    # mode of pixels, such as RGB, to number of images
    modes: Mapping[str, int]
    # groups of images with the very same pixels that are in several splits
    between: tuple[tuple[str, ...], ...]
    # such groups in one split under different labels
    contradicting: tuple[tuple[str, ...], ...]
    # such groups in one split under one label
    within: tuple[tuple[str, ...], ...]

    @property
    def wrong(self) -> bool:
        """Whether something should be mended: bad images, images in two splits, or with two labels."""
        return bool(self.bad or self.between or self.contradicting)


def check(source: str | Path, say: Callable[[str], None] = lambda text: None) -> Check:
    """Decode every image of a dataset and compare them all; raises `DataError` where there is no dataset.

    Memory grows by some hundred bytes an image.
    """
    catalog = scan(source)
    if catalog.name in NAMED:
        raise DataError(f"{catalog.name} is a named dataset; give a path or a name on the hub")
    total = sum(map(len, catalog.files.values()))
    counts: dict[str, Counter[str]] = {split: Counter() for split in catalog.files}
    same: dict[bytes, list[Seen]] = {}
    sizes: list[tuple[int, int]] = []
    modes: Counter[str] = Counter()
    bad: list[str] = []
    told = time.monotonic()
    for split, listed in catalog.files.items():
        for _, label in listed:
            counts[split].update(catalog.classes[i] for i in labels_of(label))
    for done, seen in enumerate(_seen(catalog), 1):
        if isinstance(seen, DataError):
            bad.append(str(seen))
        else:
            sizes.append(seen.size)
            modes[seen.mode] += 1
            same.setdefault(seen.digest, []).append(seen)
        if time.monotonic() - told > SAY_EVERY:
            told = time.monotonic()
            say(f"{done:,} of {total:,} images")
    groups = [group for group in same.values() if len(group) > 1]
    between = [group for group in groups if len({seen.split for seen in group}) > 1]
    others = [group for group in groups if len({seen.split for seen in group}) == 1]
    contradicting = [group for group in others if len({seen.classes for seen in group}) > 1]
    within = [group for group in others if len({seen.classes for seen in group}) == 1]
    return Check(
        catalog, counts, tuple(bad), tuple(sorted(sizes, key=math.prod)), dict(modes.most_common()),
        _names(between), _names(contradicting), _names(within),
    )  # fmt: skip


def _names(groups: list[list[Seen]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(seen.name for seen in group) for group in groups)


def _seen(catalog: Catalog) -> Iterator[Seen | DataError]:
    """Each image of a catalog in order, read by threads a little ahead."""
    entries = ((split, place, label) for split, listed in catalog.files.items() for place, label in listed)

    def look(entry: tuple[str, Place, Label]) -> Seen | DataError:
        split, place, label = entry
        try:
            pixels = read_image(place, 3).numpy()
            mode = mode_of(place)
        except DataError as error:
            return error
        digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
        digest.update(pixels.tobytes())
        classes = tuple(catalog.classes[i] for i in labels_of(label))
        return Seen(split, catalog.name_of(place), classes, pixels.shape[1:], mode, digest.digest())

    with contextlib.closing(read_ahead(entries, look, READERS * _AHEAD)) as looked:
        for _, seen in looked:
            yield seen


def as_json(found: Check) -> dict[str, object]:
    """Everything that was found, as JSON says it."""
    catalog = found.catalog
    return {
        "data": catalog.name,
        "wrong": found.wrong,
        "classes": list(catalog.classes),
        "several_classes": catalog.several,
        "digest": catalog.digest,
        "images": {split: len(listed) for split, listed in catalog.files.items()},
        "class_counts": {
            split: {name: counts.get(name, 0) for name in catalog.classes} for split, counts in found.counts.items()
        },
        "sizes": size_range(found),
        "modes": dict(found.modes),
        "bad": list(found.bad),
        "same_between_splits": [list(group) for group in found.between],
        "same_with_different_labels": [list(group) for group in found.contradicting],
        "same_within_a_split": [list(group) for group in found.within],
        "left_out": dict(catalog.left_out),
    }


def size_range(found: Check) -> dict[str, tuple[int, int]]:
    """Height and width of the images of least, median and largest area; nothing where none can be decoded."""
    sizes = found.sizes
    return {"least": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]} if sizes else {}
