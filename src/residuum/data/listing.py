"""What is known about a dataset before any image is decoded, whatever kind it is of: a `Catalog`. No torch.

The same images under the same names, with the same classes and splits, have the same catalog but for the places at
which they lie: the same order, the same images held out for validation, the same digest.
"""

import contextlib
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from residuum.data.decoding import image_size
from residuum.data.places import Place, name_of
from residuum.data.settings import SMALL_IMAGE
from residuum.errors import DataError, quoted

MEMORY_LIMIT = 2 << 30  # bytes; datasets of small images whose pixels take no more are held in memory, as uint8
USUAL_SIZE = (224, 224)  # height and width that image files are brought to where nothing else is said
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LOOKED_AT = 16  # images whose headers decide whether all share a size
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip

Label = int | tuple[int, ...]  # a class, or the classes of an image that may have several
Files = tuple[tuple[Place, Label], ...]  # where each image lies, and its label


@dataclass(frozen=True)
class Catalog:
    """What a dataset holds."""

    # what it is called by: a named dataset, a path, or `hf:` and a name
    name: str
    # names of the classes, in order
    classes: tuple[str, ...]
    # number of channels of an image
    channels: int
    # height and width that images are brought to unless settings say otherwise
    image_size: tuple[int, int]
    # split to the place and label of its images, by label and name; a named dataset has none
    files: Mapping[str, Files]
    # whether all images are held in memory
    in_memory: bool
    # kinds of files, folders and lines that are not read, and how many there are
    left_out: Mapping[str, int]
    # changes with classes, names and sizes of images, but not with the place or kind of what holds them
    digest: str
    # folder below which paths are names
    root: str = ""
    # whether an image may be of several classes, or of none
    several: bool = False
    # how often images are drawn in training, where not once an epoch
    weights: Mapping[Place, float] = field(default_factory=dict)

    def name_of(self, place: Place) -> str:
        """What an image of this dataset is called, wherever the dataset lies."""
        return name_of(place, self.root)

    @property
    def location(self) -> str:
        """What names it from any working directory."""
        if not any(self.files.values()) or self.name.startswith("hf:"):
            return self.name
        return str(Path(self.name).expanduser().absolute())


class Found(NamedTuple):
    """An image that a scan has found: its split, name, place, the names of its classes, its bytes, and its weight."""

    split: str
    name: str
    place: Place
    labels: tuple[str, ...]
    size: int
    weight: float = 1.0


def labels_of(label: Label) -> tuple[int, ...]:
    """The classes of an image, however many."""
    return (label,) if isinstance(label, int) else label


def _named(name: str, classes: tuple[str, ...], channels: int, side: int) -> Catalog:
    return Catalog(name, classes, channels, (side, side), {}, True, {}, text_digest([name, *classes]))


def text_digest(texts: Iterable[str]) -> str:
    """32 hexadecimal digits that depend on each text; lone surrogates stand for bytes that are no UTF-8."""
    total = hashlib.blake2b(digest_size=16)
    for text in texts:
        total.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return total.hexdigest()


NAMED = {
    "digits": _named("digits", tuple("0123456789"), 1, 8),
    "cifar10": _named("cifar10", _CIFAR10, 3, 32),
    "cifar100": _named("cifar100", _CIFAR100, 3, 32),
    "fashion-mnist": _named("fashion-mnist", _FASHION, 1, 28),
}


def held_out(keys: Iterable[str], labels: Sequence[int], share: float) -> list[bool]:
    """Which images are held out for validation: about `share` of them, by a hash of each image's key.

    So an image stays where it is whatever else comes or goes, for every seed and process. Each class keeps an image to
    train with; one whose share rounds to at least one image gives at least one, and so do all together if any can.
    """
    places = [_place(key) for key in keys]
    chosen = [place < share for place in places]
    if share == 0:
        return chosen
    of_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        of_class.setdefault(label, []).append(i)
    for members in of_class.values():
        taken = sum(chosen[i] for i in members)
        if taken == len(members):
            chosen[max(members, key=places.__getitem__)] = False
        elif taken == 0 and len(members) > 1 and len(members) * share >= 0.5:
            chosen[min(members, key=places.__getitem__)] = True
    if not any(chosen):
        spare = [i for members in of_class.values() if len(members) > 1 for i in members]
        if spare:
            chosen[min(spare, key=places.__getitem__)] = True
    return chosen


def _place(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    # A name with accents has other bytes on macOS than elsewhere.
    data = unicodedata.normalize("NFC", key).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


def split_files(catalog: Catalog, holdout: float) -> dict[str, Files]:
    """The files of each split that is used; `val` is held out of `train` where the dataset has none.

    `holdout` is the share that is held out, chosen by the names of the images: the same ones every time.
    """
    splits = dict(catalog.files)
    if "val" not in splits:
        train = splits["train"]
        names = (catalog.name_of(place) for place, _ in train)
        chosen = held_out(names, [(*labels_of(label), -1)[0] for _, label in train], holdout)
        if any(chosen):
            splits["val"] = tuple(file for file, out in zip(train, chosen, strict=True) if out)
            splits["train"] = tuple(file for file, out in zip(train, chosen, strict=True) if not out)
    return splits


def split_called(name: str) -> str | None:
    """The split that a name means: `val` for `Validation`; none for other names."""
    return next((split for split, spellings in SPLITS.items() if name.lower() in spellings), None)


def class_order(names: Iterable[str]) -> list[str]:
    """Names of classes sorted; where all are numbers, as numbers."""
    names = list(names)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def sort_out(
    name: str,
    found: Iterable[Found],
    *,
    root: str = "",
    classes: tuple[str, ...] | None = None,
    channels: int = 3,
    several: bool = False,
    left_out: Mapping[str, int] | None = None,
    stamp: str = "",
) -> Catalog:
    """The catalog of images in any order; `classes`, where the data lists them, are else those of train, sorted.

    Raises `DataError` for fewer than two classes, a split without train, and classes that train lacks.
    """
    rows: dict[str, list[Found]] = {split: [] for split in SPLITS}
    for row in found:
        rows[row.split].append(row)
    rows = {split: listed for split, listed in rows.items() if listed}
    if "train" not in rows:
        have = f"has images of {' and '.join(rows)} but none to train with" if rows else "holds no image"
        raise DataError(f"{quoted(name, 200)} {have}")
    names = classes or tuple(sorted({label for row in rows["train"] for label in row.labels}))
    if len(names) < 2:
        raise DataError(
            f"{quoted(name, 200)} has {len(names)} class{'es' * (len(names) != 1)} to train with; a classifier needs "
            "at least two"
        )
    twice = next((label for label, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{quoted(name, 200)} lists the class {quoted(twice, 40)} twice; give each a name of its own")
    place = {label: i for i, label in enumerate(names)}
    for split, listed in rows.items():
        unknown = sorted({label for row in listed for label in row.labels} - place.keys())
        if unknown:
            some = ", ".join(quoted(label, 40) for label in unknown[:5])
            raise DataError(
                f"the {split} images of {quoted(name, 200)} have classes that its train images have not: {some}"
                f"{', ...' if len(unknown) > 5 else ''}"
            )
    files: dict[str, Files] = {}
    sizes: list[str] = []
    for split, listed in rows.items():
        labelled = [(row, tuple(sorted(place[label] for label in row.labels))) for row in listed]
        labelled.sort(key=lambda pair: (pair[0].name if several else pair[1], pair[0].name))
        files[split] = tuple((row.place, labels if several else labels[0]) for row, labels in labelled)
        sizes += [str(row.size) for row, _ in labelled]
    weights = {row.place: row.weight for row in rows["train"] if row.weight != 1}
    if weights:
        if not any(row.weight for row in rows["train"]):
            raise DataError(f"{quoted(name, 200)} gives all its train images the weight 0; some must be more")
        stamp += text_digest(f"{row.name}\0{row.weight!r}" for row in sorted(rows["train"]) if row.weight != 1)
    return catalogued(
        name, names, files, sizes, root=root, channels=channels, several=several, left_out=left_out or {}, stamp=stamp,
        weights=weights,
    )  # fmt: skip


def catalogued(
    name: str,
    classes: tuple[str, ...],
    files: Mapping[str, Files],
    sizes: Iterable[str],
    *,
    root: str,
    left_out: Mapping[str, int],
    channels: int = 3,
    several: bool = False,
    stamp: str = "",
    weights: Mapping[Place, float] | None = None,
) -> Catalog:
    """The catalog of images in their order; `sizes` are their bytes, split by split.

    A `stamp` tells images apart that have the same names and sizes.
    """
    size = common_small_size(files["train"])
    count = sum(len(listed) for listed in files.values())
    rows = (f"{split}\0{name_of(place, root)}\0{label}" for split, listed in files.items() for place, label in listed)
    return Catalog(
        name=name,
        classes=classes,
        channels=channels,
        image_size=size or USUAL_SIZE,
        files=files,
        in_memory=size is not None and count * size[0] * size[1] * 3 <= MEMORY_LIMIT,
        left_out={kind: number for kind, number in left_out.items() if number},
        digest=text_digest([*classes, "", *rows, "", *sizes, *([stamp] * bool(stamp))]),
        root=root,
        several=several,
        weights=weights or {},
    )


def common_small_size(files: Files) -> tuple[int, int] | None:
    """Height and width if a look at some images finds them small and alike."""
    sizes = set()
    for path, _ in files[:: max(1, len(files) // _LOOKED_AT)]:
        with contextlib.suppress(DataError):  # whoever decodes it will say so
            sizes.add(image_size(path))
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size is not None and max(size) <= SMALL_IMAGE else None
