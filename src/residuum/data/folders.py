"""Image folders: one folder per class, each inside `train/`, `val/` and `test/`, or without such splits.

PATH/train/CLASS/**/*.jpg        (or Train, training)
PATH/val/CLASS/**/*.jpg          (or valid, validation), may be missing
PATH/test/CLASS/**/*.jpg         (or testing), may be missing
"""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from residuum.data.decoding import FORMATS, is_image
from residuum.data.listing import SPLITS, Catalog, Files, catalogued, split_called
from residuum.errors import DataError, quoted
from residuum.units import counted


@dataclass
class _Walk:
    """What a scan has found so far."""

    sizes: list[str] = field(default_factory=list)  # of files, in the order in which they were found
    left_out: Counter[str] = field(default_factory=Counter)


def scan_folder(root: str) -> Catalog:
    """The catalog of a folder; raises `DataError`.

    Every name and size is read, and the headers of some images; none is decoded. Links to folders are followed, each
    folder once; hidden files and folders, pipes and devices are passed by.
    """
    walk = _Walk()
    folders = _subfolders(root, walk, "outside class folders")
    splits = split_folders(root, folders, lambda name: _holds_folders(os.path.join(root, name)))  # noqa: PTH118
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
            f"{quoted(inside['train'], 200)} has {counted(len(train), 'class folder')}"
            + (f" and {counted(loose, 'image')} outside of them" if loose else "")
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
    return catalogued(root, train, files, walk.sizes, root=root, left_out=walk.left_out)


def split_folders(root: str, folders: Sequence[str], holds_folders: Callable[[str], bool]) -> dict[str, str]:
    """The folder of each split among those in `root`, as it is spelled; none where they are those of classes."""
    found: dict[str, str] = {}
    named = [name for name in folders if split_called(name) is not None]
    if len(named) < len(folders) and not any(holds_folders(name) for name in named):
        return {}  # 'train' is a class here, as in CIFAR-100
    for split in SPLITS:
        names = [name for name in named if split_called(name) == split]
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
    return any(_is_folder(entry) and not is_hidden(entry.name) for entry in _entries(path))


def _subfolders(path: str, walk: _Walk, place: str) -> list[str]:
    """Names of the folders that are not hidden, sorted; the rest is counted."""
    names = []
    for entry in _entries(path):
        if is_hidden(entry.name):
            walk.left_out["hidden folders" if _is_folder(entry) else "hidden files"] += 1
        elif _is_folder(entry):
            names.append(entry.name)
        elif is_image(entry.name):
            walk.left_out[f"images {place}"] += 1
        else:
            walk.left_out[kind_of(entry.name)] += 1
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
            others = [f"{kind} ({number:,})" for kind, number in (walk.left_out - before).most_common(3)]
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
            if is_hidden(entry.name):
                walk.left_out["hidden folders" if _is_folder(entry) else "hidden files"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else below).append(f"{here}/{entry.name}")
            elif not is_image(entry.name):
                walk.left_out[kind_of(entry.name)] += 1
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


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def kind_of(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return f"files that end in {quoted(ending, 20)}" if ending else "files without an ending"
