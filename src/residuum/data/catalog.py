"""What is known about a dataset before any image is decoded: classes, files, image size. One scan finds it. No torch.

A folder holds one folder per class, each inside `train/`, `val/` and `test/`, or without such splits:

    PATH/train/CLASS/**/*.jpg        (or Train, training)
    PATH/val/CLASS/**/*.jpg          (or valid, validation), may be missing
    PATH/test/CLASS/**/*.jpg         (or testing), may be missing
"""

import contextlib
import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from residuum.data.decoding import FORMATS, image_size, is_image
from residuum.data.settings import SMALL_IMAGE
from residuum.errors import DataError, nearest, quoted

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

Files = tuple[tuple[str, int], ...]  # path and label of each image


@dataclass(frozen=True)
class Catalog:
    """What a dataset holds.

    `name` is what it is called by: a named dataset, or the folder's path. `image_size` (height, width) is what its
    images are brought to unless settings say otherwise. `files` maps each split that a folder has to the path and label
    of its images; a named dataset has none. `in_memory` says whether images are all held in memory. `left_out` maps
    kinds of files and folders that are not read to how many there are. `digest` changes with classes, file names and
    sizes of files, but not with the place of the folder.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    files: Mapping[str, Files]
    in_memory: bool
    left_out: Mapping[str, int]
    digest: str


def _named(name: str, classes: tuple[str, ...], channels: int, side: int) -> Catalog:
    return Catalog(name, classes, channels, (side, side), {}, True, {}, _digest([name, *classes]))


def _digest(texts: Iterable[str]) -> str:
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


def scan(path: str | Path) -> Catalog:
    """The catalog of a named dataset or of an image folder; raises `DataError`.

    Of a folder every name and size is read, and the headers of some images; none is decoded. Links to folders are
    followed, each folder once; hidden files and folders, pipes and devices are passed by.
    """
    text = str(path)
    if text in NAMED:
        return NAMED[text]
    root = os.path.expanduser(text)  # noqa: PTH111 (Path's raises for a user that is not there)
    if os.path.isdir(root):  # noqa: PTH112 (Path's raises for a path that cannot be)
        return _scan_folder(root)
    if os.path.exists(root):  # noqa: PTH110
        raise DataError(f"{quoted(text, 200)} is a file; give a folder that holds a folder of images for each class")
    raise DataError(
        f"{quoted(text, 200)} is neither a dataset ({', '.join(NAMED)}) nor a folder that exists{nearest(text, NAMED)}"
    )


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
    """The files of each split that is used; `val` is held out of `train` where the folder has none."""
    splits = dict(catalog.files)
    if "val" not in splits:
        train = splits["train"]
        names = (relative(path, catalog.name) for path, _ in train)
        chosen = held_out(names, [label for _, label in train], holdout)
        if any(chosen):
            splits["val"] = tuple(file for file, out in zip(train, chosen, strict=True) if out)
            splits["train"] = tuple(file for file, out in zip(train, chosen, strict=True) if not out)
    return splits


def relative(path: str, root: str) -> str:
    """A file's path below a folder, with `/` on every system."""
    return path[len(root.rstrip("/" + os.sep)) + 1 :].replace(os.sep, "/")


@dataclass
class _Walk:
    """What a scan has found so far."""

    sizes: list[str] = field(default_factory=list)  # of files, in the order in which they were found
    left_out: Counter[str] = field(default_factory=Counter)


def _scan_folder(root: str) -> Catalog:
    walk = _Walk()
    folders = _subfolders(root, walk, "outside class folders")
    splits = _splits(root, folders)
    for name in folders if splits else ():
        if name not in splits.values():
            walk.left_out["other folders beside the splits"] += 1
    inside = {split: os.path.join(root, name) for split, name in splits.items()} or {"train": root}  # noqa: PTH118
    classes: dict[str, list[str]] = {
        split: _subfolders(path, walk, "outside class folders") if splits else folders for split, path in inside.items()
    }
    train = tuple(classes["train"])
    if len(train) < 2:
        loose = walk.left_out["images outside class folders"]
        raise DataError(
            f"{quoted(inside['train'], 200)} has {len(train)} class folder{'s' * (len(train) != 1)}"
            + (f" and {loose:,} image{'s' * (loose != 1)} outside of them" if loose else "")
            + "; a classifier needs at least two, with the images of each class in a folder of its own"
        )
    for split, names in classes.items():
        unknown = [name for name in names if name not in set(train)]
        if unknown:
            shown = ", ".join(quoted(name, 40) for name in unknown[:5])
            raise DataError(
                f"{quoted(inside[split], 200)} has classes that {quoted(inside['train'], 200)} has not: {shown}"
                f"{', ...' if len(unknown) > 5 else ''}; give both the same class folders"
            )
    files = {split: _files(inside[split], train, set(names), split, walk) for split, names in classes.items()}
    size = _common_small_size(files["train"])
    count = sum(len(listed) for listed in files.values())
    rows = (f"{split}\0{relative(path, root)}\0{label}" for split, listed in files.items() for path, label in listed)
    return Catalog(
        name=root,
        classes=train,
        channels=3,
        image_size=size or USUAL_SIZE,
        files=files,
        in_memory=size is not None and count * size[0] * size[1] * 3 <= MEMORY_LIMIT,
        left_out={kind: number for kind, number in walk.left_out.items() if number},
        digest=_digest([*train, "", *rows, "", *walk.sizes]),
    )


def _splits(root: str, folders: list[str]) -> dict[str, str]:
    """The folder of each split, as it is spelled; none where `root` holds class folders."""
    found: dict[str, str] = {}
    named = [name for name in folders if any(name.lower() in spellings for spellings in SPLITS.values())]
    if len(named) < len(folders) and not any(_holds_folders(os.path.join(root, name)) for name in named):  # noqa: PTH118
        return {}  # 'train' is a class here, as in CIFAR-100
    for split, spellings in SPLITS.items():
        names = [name for name in folders if name.lower() in spellings]
        if len(names) > 1:
            raise DataError(
                f"{quoted(root, 200)} has {' and '.join(quoted(name) for name in names)}, which both mean {split}; "
                "keep one of them"
            )
        if names:
            found[split] = names[0]
    if found and "train" not in found:
        others = " and ".join(quoted(name) for name in found.values())
        raise DataError(f"{quoted(root, 200)} has {others} but no 'train' folder; put the training images into one")
    return found


def _holds_folders(path: str) -> bool:
    return any(_is_folder(entry) and not _is_hidden(entry.name) for entry in _entries(path))


def _subfolders(path: str, walk: _Walk, place: str) -> list[str]:
    """Names of the folders that are not hidden, sorted; the rest is counted."""
    names = []
    for entry in _entries(path):
        if _is_hidden(entry.name):
            walk.left_out["hidden folders" if _is_folder(entry) else "hidden files"] += 1
        elif _is_folder(entry):
            names.append(entry.name)
        elif is_image(entry.name):
            walk.left_out[f"images {place}"] += 1
        else:
            walk.left_out[_kind(entry.name)] += 1
    return names


def _files(path: str, classes: tuple[str, ...], present: set[str], split: str, walk: _Walk) -> Files:
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        if name not in present:  # validation and test may lack a class
            continue
        folder = os.path.join(path, name)  # noqa: PTH118
        before = Counter(walk.left_out)
        listed = sorted(_images(folder, walk))
        if not listed and split == "train":
            others = [f"{number:,} {kind}" for kind, number in (walk.left_out - before).most_common(3)]
            raise DataError(
                f"{quoted(folder, 200)} holds no image{', but ' * bool(others)}{', '.join(others)}; add some "
                f"({', '.join(tuple(FORMATS)[:10])}, ...), or remove the class"
            )
        walk.sizes += [str(size) for _, size in listed]
        found += [(file, label) for file, _ in listed]
    if not found:
        raise DataError(f"{quoted(path, 200)} holds no image in any class folder; add some or remove it")
    return tuple(found)


def _images(folder: str, walk: _Walk) -> list[tuple[str, int]]:
    """Path and bytes of each image in a folder and those below it, a folder that links lead to more than once, once."""
    found = []
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        status = os.stat(here)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            walk.left_out["links to folders read already"] += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        below: list[str] = []
        links: list[str] = []
        for entry in _entries(here):
            if _is_hidden(entry.name):
                walk.left_out["hidden folders" if _is_folder(entry) else "hidden files"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else below).append(f"{here}/{entry.name}")
            elif not is_image(entry.name):
                walk.left_out[_kind(entry.name)] += 1
            else:
                size = _regular_size(entry)
                if size is None:
                    walk.left_out["links, pipes or devices that are no files"] += 1
                else:
                    found.append((f"{here}/{entry.name}", size))
        waiting = links[::-1] + waiting + below[::-1]  # real folders first
    return found


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {quoted(path, 200)} cannot be read: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # links in a circle
        return entry.is_dir()
    return False


def _regular_size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file, through links; nothing where it is none."""
    with contextlib.suppress(OSError):
        status = entry.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _kind(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return f"files that end in {quoted(ending, 20)}" if ending else "files without an ending"


def _common_small_size(files: Files) -> tuple[int, int] | None:
    """Height and width if a look at some images finds them small and alike."""
    sizes = set()
    for path, _ in files[:: max(1, len(files) // _LOOKED_AT)]:
        with contextlib.suppress(DataError):  # whoever decodes it will say so
            sizes.add(image_size(path))
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size is not None and max(size) <= SMALL_IMAGE else None
