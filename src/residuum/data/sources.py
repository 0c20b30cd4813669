"""Where images come from: the digits in the package, torchvision's datasets, image folders."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from residuum.data.catalog import SMALL_IMAGE, Facts, Folder
from residuum.errors import DataError, first_line
from residuum.preprocessing import Preprocessing

# Datasets whose pixels take no more are held in memory, as uint8.
MEMORY_LIMIT = 2 << 30
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Part:
    """One part of a dataset: uint8 (N, H, W, C) in memory, or files still to be read; labels are int64 (N,)."""

    images: Tensor | tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A dataset ready for batches; `skipped` names the files that could not be decoded and were left out."""

    classes: tuple[str, ...]
    train: Part
    test: Part
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()


def evaluation_transform(preprocessing: Preprocessing) -> v2.Transform:
    """From an image of uint8 (channels, any, any) to uint8 (channels, *size), as in evaluation and prediction."""
    if preprocessing.crop == 0:
        return v2.Resize(preprocessing.image_size, antialias=True)
    shorter = round(preprocessing.image_size[0] / preprocessing.crop)
    return v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(preprocessing.image_size)])


def open_source(facts: Facts, *, channels: int, image_size: int, root: Path, skip_bad_images: bool) -> Source:
    """Read or list a dataset; raises `DataError`.

    Images of one small size are held in memory; `image_size` in pixels, 0 for the images' own or else 224.
    """
    if isinstance(facts, Folder):
        return _open_folder(facts, channels, image_size, skip_bad_images)
    if channels != facts.channels:
        raise DataError(f"{facts.name} has {facts.channels} channel(s) but the model takes {channels}; leave that out")
    if image_size:
        raise DataError(f"{facts.name} keeps its own image size; leave out the image size, or give an image folder")
    if facts.name == "digits":
        train, test = _digits()
        return _in_memory(facts.classes, train, test)
    return _torchvision(facts, root)


def read_image(path: str, channels: int) -> Tensor:
    """An image file as uint8 (channels, H, W), turned as its EXIF says; raises `DataError` naming the file."""
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    try:
        image: Tensor = decode_image(path, mode, apply_exif_orientation=True)
    except (RuntimeError, OSError, ValueError) as error:
        if not Path(path).is_file():
            raise DataError(f"there is no image file {path}") from None
        reason = re.sub(r".*\.cpp:\d+\W*", "", first_line(error)).partition(". ")[0]
        raise DataError(f"{path} cannot be decoded as an image ({reason})") from None
    if image.ndim == 4:  # an animation: its first frame
        image = image[0]
    return image if image.dtype == torch.uint8 else (image.int() >> 8).to(torch.uint8)


def _digits() -> tuple[Part, Part]:
    with np.load(files("residuum.data").joinpath("digits/digits.npz")) as archive:  # type: ignore[arg-type]
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"]).long()
    # Every fifth of each digit, after one fixed shuffle, is the test set: the same for every seed of training.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(labels[order], stable=True)]
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[order[::5]] = True
    images = images[..., None]
    return Part(images[~test], labels[~test]), Part(images[test], labels[test])


def _torchvision(facts: Facts, root: Path) -> Source:
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashion-mnist": datasets.FashionMNIST}
    try:
        root.mkdir(parents=True, exist_ok=True)
        train, test = (kind[facts.name](str(root), train=part, download=True) for part in (True, False))
    except Exception as error:  # whatever the network or the disk says
        raise DataError(
            f"{facts.name} could not be downloaded to {root} ({first_line(error)}); "
            "check the connection, or put torchvision's files there by hand"
        ) from error
    classes = tuple(train.classes)
    return _in_memory(classes, _part(train), _part(test))


def _part(dataset: Any) -> Part:
    images = torch.as_tensor(dataset.data)
    return Part(images if images.ndim == 4 else images[..., None], torch.as_tensor(dataset.targets).long())


def _in_memory(classes: tuple[str, ...], train: Part, test: Part, skipped: tuple[str, ...] = ()) -> Source:
    assert isinstance(train.images, Tensor)
    height, width, channels = train.images.shape[1:]
    values = train.images.reshape(-1, channels)
    count = torch.zeros(channels, 256, dtype=torch.float64)
    for c in range(channels):  # exact and without a float copy of the images
        count[c] = torch.bincount(values[:, c], minlength=256)
    share, level = count / count.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp_min(1e-6).sqrt()
    preprocessing = Preprocessing(channels, (height, width), tuple(mean.tolist()), tuple(std.tolist()), 0.0)
    return Source(classes, train, test, preprocessing, skipped)


def _open_folder(folder: Folder, channels: int, image_size: int, skip_bad_images: bool) -> Source:
    if channels not in (1, 3):
        raise DataError(f"an image folder gives 1 channel (grey) or 3 (RGB), but the model takes {channels}")
    size = 0 if image_size else _common_small_size(folder, channels)
    count = len(folder.train) + len(folder.test)
    if size and count * size * size * channels <= MEMORY_LIMIT:
        skipped: list[str] = []
        train, test = (_decode(part, channels, size, skip_bad_images, skipped) for part in (folder.train, folder.test))
        return _in_memory(folder.classes, train, test, tuple(skipped))
    size = image_size or size or 224
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,), (0.226,))
    preprocessing = Preprocessing(channels, (size, size), mean, std, 0.875)
    return Source(folder.classes, _listed(folder.train), _listed(folder.test), preprocessing)


def _listed(part: Sequence[tuple[str, int]]) -> Part:
    return Part(tuple(path for path, _ in part), torch.tensor([label for _, label in part]))


def _common_small_size(folder: Folder, channels: int) -> int:
    """The side in pixels if a look at some images finds them all square, small and alike, else 0."""
    sides: set[int] = set()
    for path, _ in folder.train[:: max(1, len(folder.train) // 16)]:
        try:
            sides.update(read_image(path, channels).shape[1:])
        except DataError:
            continue  # whoever reads all files deals with it
    return sides.pop() if len(sides) == 1 and max(sides) <= SMALL_IMAGE else 0


def _decode(
    part: Sequence[tuple[str, int]], channels: int, size: int, skip_bad_images: bool, skipped: list[str]
) -> Part:
    images = torch.empty(len(part), size, size, channels, dtype=torch.uint8)
    resize = v2.Resize((size, size), antialias=True)

    def one(index: int) -> str | None:
        path = part[index][0]
        try:
            image = read_image(path, channels)
        except DataError:
            if not skip_bad_images:
                raise
            return path
        images[index] = (image if image.shape[1:] == (size, size) else resize(image)).permute(1, 2, 0)
        return None

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        try:
            bad = list(pool.map(one, range(len(part))))
        except DataError as error:
            pool.shutdown(cancel_futures=True)
            raise DataError(f"{error}; remove or mend it, or train without it by --skip-bad-images") from None
    good = torch.tensor([path is None for path in bad])
    skipped += [path for path in bad if path is not None]
    labels = torch.tensor([label for _, label in part])[good]
    if len(labels) < 2:
        raise DataError("after leaving out bad images fewer than two are left; mend the folder")
    return Part(images[good], labels)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (N, C, H, W) to float with the mean at 0 and the deviation at 1, on the images' own device."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(-1, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=images.device).view(-1, 1, 1) * 255
    return (images.float() - mean) / std
