"""Classes of unequal numbers of images: weights for the loss, or an order in which rare ones come more often.

Both go by the number of a class's images to a power: 0 leaves classes as they are, 1 makes all count alike.
"""

import torch
from torch import Tensor

from residuum.errors import ConfigError


def class_weights(labels: Tensor, classes: int, power: float) -> Tensor:
    """Weights of classes (classes,) by their numbers among the labels (N,) to the -power; their mean over images is 1.

    A class without images has weight 0. Raises `ConfigError` for labels of several classes.
    """
    one_class_each(labels)
    counts = labels.bincount(minlength=classes).double()
    weights = torch.where(counts > 0, counts.pow(-power), 0.0)
    return (weights * (len(labels) / (weights * counts).sum())).float()


def one_class_each(labels: Tensor) -> None:
    """Raise `ConfigError` for labels (N, classes): what is common in one class of an image is rare in another."""
    if labels.ndim != 1:
        raise ConfigError("data.balance is for images of one class each, and these may be of several; leave it out")


def balanced_order(labels: Tensor, power: float, generator: torch.Generator) -> Tensor:
    """As many numbers as there are labels (N,), in random order, classes drawn by their numbers to the 1 - power.

    A class has what is due to it up to one image, and each of its images comes as often as any other of them, up to
    once. What comes again is numbered as a further view: N, 2 N, ... above the number of the image.
    """
    count = len(labels)
    counts = labels.bincount()
    due = torch.where(counts > 0, counts.double().pow(1 - power), 0.0)
    # Rounded by one draw for all, so that they add up: class c has the whole numbers between its ends.
    ends = (due / due.sum() * count).cumsum(0) + torch.rand((), generator=generator, dtype=torch.float64)
    ends[counts.nonzero().max() :] = count  # whatever was rounded on the way
    taken = ends.floor().long().diff(prepend=torch.zeros(1, dtype=torch.long))
    members = torch.split(labels.argsort(stable=True), counts.tolist())
    chosen = []
    for images, number in zip(members, taken.tolist(), strict=True):
        if number:
            mixed = images[torch.randperm(len(images), generator=generator)]
            rounds = -(-number // len(images))
            views = torch.arange(rounds).repeat_interleave(len(images)) * count
            chosen.append((mixed.repeat(rounds) + views)[:number])
    return torch.cat(chosen)[torch.randperm(count, generator=generator)]
