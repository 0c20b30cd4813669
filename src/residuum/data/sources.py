"""Where images come from: the digits in the package, torchvision's datasets, and what a catalog lists."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residuum.data.decoding import image_size, read_image
from residuum.data.listing import NAMED, Catalog, Files, Label, held_out, labels_of, split_files
from residuum.data.places import Place
from residuum.data.preparing import evaluation_transform, normalise
from residuum.data.reading import decoded
from residuum.data.settings import DataSettings
from residuum.errors import ConfigError, DataError, first_line, quoted
from residuum.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from residuum.units import counted

__all__ = ["Dataset", "Split", "evaluation_transform", "normalise", "open_dataset", "read_image"]

CROP = 0.875  # of photographs in evaluation: the centre that 224 of 256 pixels show


@dataclass(frozen=True)
class Split:
    """One split of a dataset: uint8 (N, H, W, C) in memory, or where images lie that are still to be read.

    Labels are int64 (N,), or where images may be of several classes float32 (N, classes), 1 for each class it is of.
    """

    images: Tensor | tuple[Place, ...]
    labels: Tensor
    weights: Tensor | None = None  # (N,): how often images are drawn in training, relative to one another
    names: tuple[str, ...] | None = None  # of images in memory that came from files

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> "Split":
        """The images that a mask (N,) chooses."""
        weights = None if self.weights is None else self.weights[chosen]
        names = None if self.names is None else tuple(itertools.compress(self.names, chosen.tolist()))
        if isinstance(self.images, Tensor):
            return Split(self.images[chosen], self.labels[chosen], weights, names)
        return Split(tuple(itertools.compress(self.images, chosen.tolist())), self.labels[chosen], weights, names)


@dataclass(frozen=True)
class Dataset:
    """A dataset ready for loaders.

    `val` and `test` may be missing. `skipped` says of each file of a split that could not be decoded and was left out
    why. `digest` is the catalog's.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    preprocessing: Preprocessing
    skipped: Mapping[str, tuple[str, ...]]
    digest: str


def open_dataset(
    catalog: Catalog,
    settings: DataSettings,
    *,
    channels: int,
    cache: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Read or list what a catalog says there is; raises `DataError`.

    `channels` is what the network takes, `cache` where downloaded datasets are kept; `say` is told at most every ten
    seconds how far reading has come.
    """
    if catalog.name in NAMED:
        return _open_named(catalog, settings, channels, cache)
    if channels not in (1, 3):
        raise DataError(f"images are read with 1 channel (grey) or 3 (RGB), but the model takes {channels}")
    splits = split_files(catalog, settings.holdout)
    # Images of one small size are held in memory, unless another size is asked for.
    if catalog.in_memory and settings.image_size in (None, catalog.image_size):
        _refuse_for_memory(settings)
        return _open_small(catalog, splits, settings, channels, say)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,), (0.226,))
    size, crop = settings.image_size or catalog.image_size, CROP if settings.crop is None else settings.crop
    preprocessing = _as_told(Preprocessing(channels, size, mean, std, crop, settings.interpolation), settings)
    skipped: dict[str, tuple[str, ...]] = {}
    if "val" in splits:  # it is read for the first time after a whole epoch: what can be known before, is
        splits["val"], left_out = _readable(splits["val"], settings.skip_bad_images)
        skipped = {"val": left_out} if left_out else {}
    listed = {name: _listed(split, catalog) for name, split in splits.items()}
    return Dataset(
        catalog.classes,
        listed["train"],
        listed.get("val"),
        listed.get("test"),
        preprocessing,
        skipped,
        catalog.digest,
    )


def _as_told(preprocessing: Preprocessing, settings: DataSettings) -> Preprocessing:
    """With mean and deviation of the settings: one number is for all channels, and grey images take the mean of all."""
    told: dict[str, tuple[float, ...]] = {}
    channels = preprocessing.channels
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if values is None:
            continue
        if len(values) not in (1, channels) and channels != 1:
            raise ConfigError(
                f"data.{name} is {quoted(values)}; the network takes {channels} channels, so give one number or "
                f"{channels}"
            )
        told[name] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return dataclasses.replace(preprocessing, **told)  # type: ignore[arg-type]


def _refuse_for_memory(settings: DataSettings) -> None:
    """Raise `ConfigError` for what says how images are scaled, where they stay as they are."""
    for name, usual in (("crop", None), ("interpolation", "bilinear")):
        if getattr(settings, name) != usual:
            raise ConfigError(f"data.{name} is for images that are scaled, and these small ones stay as they are")


# -- named datasets ----------------------------------------------------------------------------------------------------


def _open_named(catalog: Catalog, settings: DataSettings, channels: int, cache: Path) -> Dataset:
    if channels != catalog.channels:
        raise DataError(
            f"{catalog.name} has {counted(catalog.channels, 'channel')} but the model takes {channels}; leave that out"
        )
    scaled = settings.image_size if settings.image_size != catalog.image_size else None
    if scaled is None:
        _refuse_for_memory(settings)
    classes = catalog.classes
    if catalog.name == "digits":
        train, test = _digits()
    else:
        classes, train, test = _torchvision(catalog, cache)
    chosen = torch.tensor(held_out(map(str, range(len(train))), train.labels.tolist(), settings.holdout))
    val = train.take(chosen) if chosen.any() else None
    train = train.take(~chosen)
    look = _as_told(_measured(train), settings)
    if scaled is not None:
        more: Any = {"image_size": scaled, "crop": settings.crop or 0.0, "interpolation": settings.interpolation}
        look = dataclasses.replace(look, **more)
    return Dataset(classes, train, val, test, look, {}, catalog.digest)


def _digits() -> tuple[Split, Split]:
    with np.load(files("residuum.data").joinpath("digits/digits.npz")) as archive:  # type: ignore[arg-type]
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"]).long()
    # Every fifth of each digit, after one fixed shuffle, is the test split: the same for every seed of training.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(labels[order], stable=True)]
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[order[::5]] = True
    whole = Split(images[..., None], labels)
    return whole.take(~test), whole.take(test)


def _torchvision(catalog: Catalog, cache: Path) -> tuple[tuple[str, ...], Split, Split]:
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashion-mnist": datasets.FashionMNIST}
    try:
        cache.mkdir(parents=True, exist_ok=True)
        train, test = (kind[catalog.name](str(cache), train=part, download=True) for part in (True, False))
    except Exception as error:  # whatever the network or the disk says
        raise DataError(
            f"{catalog.name} could not be downloaded to {quoted(str(cache), 200)} ({first_line(error)}); "
            "check the connection, or put torchvision's files there by hand"
        ) from error
    return tuple(train.classes), _split(train), _split(test)


def _split(dataset: Any) -> Split:
    images = torch.as_tensor(dataset.data)
    return Split(images if images.ndim == 4 else images[..., None], torch.as_tensor(dataset.targets).long())


def _measured(train: Split) -> Preprocessing:
    """The preprocessing of images in memory: as they are, with their own mean and deviation."""
    assert isinstance(train.images, Tensor)
    height, width, channels = train.images.shape[1:]
    values = train.images.reshape(-1, channels)
    count = torch.zeros(channels, 256, dtype=torch.float64)
    for c in range(channels):  # exact and without a float copy of the images
        count[c] = torch.bincount(values[:, c], minlength=256)
    share, level = count / count.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp_min(1e-6).sqrt()
    return Preprocessing(channels, (height, width), tuple(mean.tolist()), tuple(std.tolist()), 0.0)


# -- listed images -----------------------------------------------------------------------------------------------------


def _listed(split: Files, catalog: Catalog) -> Split:
    return Split(tuple(place for place, _ in split), _labels(split, catalog), _weights(split, catalog))


def _weights(listed: Files, catalog: Catalog) -> Tensor | None:
    if not catalog.weights:
        return None
    return torch.tensor([catalog.weights.get(place, 1.0) for place, _ in listed])


def _labels(listed: Files, catalog: Catalog) -> Tensor:
    if not catalog.several:
        return torch.tensor([label for _, label in listed])
    targets = torch.zeros(len(listed), len(catalog.classes))
    for i, (_, label) in enumerate(listed):
        targets[i, list(labels_of(label))] = 1
    return targets


def name_of(place: Place) -> str:
    """The path of an image, or what it is called in the file that holds it."""
    return place if isinstance(place, str) else place.name


def _readable(listed: Files, skip_bad_images: bool) -> tuple[Files, tuple[str, ...]]:
    """The files whose headers say that they are images, and what is wrong with the others."""

    def problem(file: tuple[Place, Label]) -> str | None:
        try:
            image_size(file[0])
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, listed, chunksize=64))
    found = [text for text in problems if text is not None]
    if found and not skip_bad_images:
        raise DataError(f"{found[0]}; remove or mend it, or leave it out by --skip-bad-images")
    good = tuple(file for file, text in zip(listed, problems, strict=True) if text is None)
    if not good:
        raise DataError(f"no image of the validation split can be decoded, first: {found[0]}")
    return good, tuple(found)


def _open_small(
    catalog: Catalog, splits: dict[str, Files], settings: DataSettings, channels: int, say: Callable[[str], None]
) -> Dataset:
    """All images decoded into memory, at the catalog's size."""
    listed = [file for split in splits.values() for file in split]
    images, bad = decoded(
        [place for place, _ in listed], catalog.image_size, channels, say, stop_at_bad=not settings.skip_bad_images
    )
    if bad and not settings.skip_bad_images:
        raise DataError(f"{bad[min(bad)]}; remove or mend it, or leave it out by --skip-bad-images")
    whole = Split(images, _labels(tuple(listed), catalog))
    good = torch.ones(len(listed), dtype=torch.bool)
    good[list(bad)] = False
    made: dict[str, Split] = {}
    skipped: dict[str, tuple[str, ...]] = {}
    begin = 0
    for name, files_of_split in splits.items():
        end = begin + len(files_of_split)
        names = tuple(name_of(place) for place, _ in files_of_split)
        part = Split(whole.images[begin:end], whole.labels[begin:end], _weights(files_of_split, catalog), names)
        made[name] = part.take(good[begin:end]) if bad else part
        if len(made[name]) < (2 if name == "train" else 1):
            raise DataError(
                f"of the {name} images {len(made[name])} can be decoded and that is too few, first: {bad[min(bad)]}"
            )
        if left_out := tuple(bad[index] for index in sorted(bad) if begin <= index < end):
            skipped[name] = left_out
        begin = end
    return Dataset(
        catalog.classes,
        made["train"],
        made.get("val"),
        made.get("test"),
        _as_told(_measured(made["train"]), settings),
        skipped,
        catalog.digest,
    )
