"""What is known about a dataset before any image is read: its classes, channels and files. No torch here."""

import os
from dataclasses import dataclass
from pathlib import Path

from residuum.errors import DataError, nearest
from residuum.files import expanded

SMALL_IMAGE = 64  # pixels; larger ones are cropped and scaled anew in every epoch, so they stay files
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """A dataset's name, its classes in the order of their labels (numbers where names are not known) and channels."""

    name: str
    classes: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Folder(Facts):
    """An image folder: the files of both parts, each with its label, and the longer side of a first image in pixels."""

    side: int = 0
    train: tuple[tuple[str, int], ...] = ()
    test: tuple[tuple[str, int], ...] = ()


NAMED = {
    "digits": Facts("digits", tuple("0123456789"), 1),
    "cifar10": Facts("cifar10", _CIFAR10, 3),
    "cifar100": Facts("cifar100", tuple(str(i) for i in range(100)), 3),
    "fashion-mnist": Facts("fashion-mnist", _FASHION, 1),
}


def facts(data: str) -> Facts:
    """The facts of a named dataset, or of an image folder with `train/` and `test/` or `val/`; raises `DataError`."""
    if data in NAMED:
        return NAMED[data]
    path = expanded(data, DataError)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        raise DataError(f"--data {data} is a file; give an image folder with train/ and test/ or val/ inside")
    raise DataError(
        f"--data {data} is neither a dataset ({', '.join(NAMED)}) nor a folder that exists{nearest(data, NAMED)}"
    )


def _folder(path: Path) -> Folder:
    train = path / "train"
    test = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise DataError(f"{path} has no train/ and test/ (or val/) inside; put one folder per class into each")
    classes, others = _subfolders(train), _subfolders(test)
    if classes != others:
        only = sorted(set(classes) ^ set(others))
        raise DataError(
            f"the classes of {train} and {test} differ: {', '.join(only[:5])}{', ...' if len(only) > 5 else ''} "
            "only in one of them; give both the same class folders"
        )
    if len(classes) < 2:
        raise DataError(f"{train} has {len(classes)} class folder(s); a classifier needs at least two")
    files = _files(train, classes)
    return Folder(str(path), classes, 3, _side(files), files, _files(test, classes))


def _side(files: tuple[tuple[str, int], ...]) -> int:
    from PIL import Image  # torchvision and matplotlib bring it

    for path, _ in files[:8]:
        try:
            with Image.open(path) as image:  # reads the header alone
                return max(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # whoever decodes it will say so
    return 0


def _subfolders(path: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")))


def _files(path: Path, classes: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    found = []
    for label, name in enumerate(classes):
        names = [
            f"{folder}/{file}"
            for folder, _, files in os.walk(path / name)
            for file in files
            if file.lower().endswith(IMAGE_ENDINGS) and not file.startswith(".")
        ]
        if not names:
            raise DataError(f"{path / name} holds no image ({', '.join(IMAGE_ENDINGS)}); add some or remove the class")
        found += [(file, label) for file in sorted(names)]
    return tuple(found)
