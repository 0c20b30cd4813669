"""The images whose values set the ranges of 8-bit integers, and that they are others than those of the gate."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from residuum.data.sources import Split, evaluation_transform, normalise, read_image
from residuum.errors import DataError
from residuum.preprocessing import Preprocessing

COUNT = 300  # images, NNCF's default
LEAST = 32  # images; of fewer the ranges are a matter of chance
BATCH = 10  # images that go through the float network together


@dataclass(frozen=True, eq=False)
class Calibration:
    """Normalised images (N, C, H, W), a digest of each, and what is to be said of how they were chosen."""

    # normalised, float32 (N, C, H, W)
    images: Tensor
    # a digest of each image's pixels
    digests: frozenset[str] = field(repr=False)
    # number of images that were asked for
    asked: int
    # what is to be said of how they were chosen
    note: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> list[Tensor]:
        """The images, a few at a time."""
        return list(torch.split(self.images, BATCH))


def calibration(split: Split, preprocessing: Preprocessing, *, count: int = COUNT, seed: int = 0) -> Calibration:
    """`count` images of a split, chosen by `seed`, spread over its classes, as the network sees them in evaluation.

    A split that has fewer gives all it has, and says so. Raises `DataError` for fewer than 32, and for one that cannot
    be decoded.
    """
    if count < LEAST or len(split) < LEAST:
        raise DataError(
            f"{min(count, len(split))} images for calibration are too few to tell the range of values by; give at "
            f"least {LEAST}"
        )
    places = _spread(split.labels, min(count, len(split)), seed)
    transform = evaluation_transform(preprocessing)
    images = split.images
    if isinstance(images, Tensor):
        pixels = transform(images[places].permute(0, 3, 1, 2))
    else:
        pixels = torch.stack([transform(read_image(images[i], preprocessing.channels)) for i in places])
    note = "" if len(places) == count else f"{count} images were asked for, and there are {len(places)}"
    values = normalise(pixels, preprocessing)
    return Calibration(values, frozenset(digests(values, preprocessing)), count, note)


def digests(images: Tensor, preprocessing: Preprocessing) -> Iterable[str]:
    """A digest of each of some normalised images (N, C, H, W): that of its pixels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).contiguous()
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest() for image in pixels]


def refuse_overlap(chosen: Calibration, others: Iterable[str]) -> None:
    """Raise `DataError` where an image of the gate is one of calibration: the gate would be passed too easily."""
    same = len(chosen.digests & set(others))
    if same:
        raise DataError(
            f"{same} of the {len(chosen)} images for calibration are test images too; the accuracy would be measured "
            "on what the ranges were set by; calibrate on training images"
        )


def _spread(labels: Tensor, count: int, seed: int) -> list[int]:
    """`count` places, as nearly as possible as many of each class; of images of several classes any."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    if labels.ndim == 2:
        return order[:count]
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for place in order:
        by_class[int(labels[place])].append(place)
    rounds = [(i, place) for places in by_class.values() for i, place in enumerate(places)]
    return [place for _, place in sorted(rounds, key=lambda pair: pair[0])][:count]
