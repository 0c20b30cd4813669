"""MixUp (1710.09412) and CutMix (1905.04899) of a batch, with what torchvision's transforms draw.

What is drawn is a function of seed, epoch, step and chunk alone, and no generator is left changed. Partners are
neighbours in the batch, whose order is drawn for each epoch: image i has image i - 1 mixed in, the first one the last.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from residuum.data.augmentation import seed_for
from residuum.train.losses import soft_targets

_MIXING = 0x6D6978  # "mix": tells these seeds from those of order and augmentation


class Mixed(NamedTuple):
    """Mixed images (N, C, H, W): `share` of each is its own, of class `labels`, the rest its partner's.

    Labels and partners are class ids (N,), or shares (N, classes) where the batch came with those.
    """

    images: Tensor
    labels: Tensor
    partners: Tensor
    share: float

    def targets(self, classes: int) -> Tensor:
        """The share that each class has of each image, (N, classes)."""
        own, other = soft_targets(self.labels, classes), soft_targets(self.partners, classes)
        return own * self.share + other * (1 - self.share)


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    mixup: float,
    cutmix: float,
    seed: int,
    epoch: int,
    step: int,
    chunk: int = 0,
    before: tuple[Tensor, Tensor] | None = None,
) -> Mixed:
    """Mix a batch of float images (N, C, H, W) with itself, on any device and in its memory format.

    `mixup` and `cutmix` are the parameters of their Beta distributions, 0 for neither; where both are above 0 a fair
    coin chooses one for the whole batch. One share is drawn for the whole batch; CutMix's box, cut off at the border,
    says what it comes to. The batch that is given stays as it is. Where it is a part of a larger one, `before` is the
    image (1, C, H, W) and the label that come before the first: its partners.
    """
    if (len(images) == 1 and before is None) or not (mixup or cutmix):
        return Mixed(images, labels, labels, 1.0)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, of the CPU alone
        torch.default_generator.manual_seed(seed_for(seed, epoch, step, chunk, _MIXING))
        cut = bool(torch.rand(()) < 0.5) if mixup and cutmix else cutmix > 0
        transform = v2.CutMix(alpha=float(cutmix)) if cut else v2.MixUp(alpha=float(mixup))
        drawn = transform.make_params([images])
    image, label = before or (None, None)
    others = _partners(labels, label)
    if not cut:
        share = float(drawn["lam"])
        return Mixed(images.lerp(_partners(images, image), 1 - share), labels, others, share)
    left, top, right, bottom = drawn["box"]
    box = (..., slice(top, bottom), slice(left, right))
    mixed = images.clone()
    mixed[box] = _partners(images[box], None if image is None else image[box])
    return Mixed(mixed, labels, others, float(drawn["lam_adjusted"]))


def _partners(values: Tensor, before: Tensor | None) -> Tensor:
    """Of each value (N, ...) the one before it; before the first comes the last, or the one that is given (1, ...)."""
    partners = values.roll(1, 0)
    if before is not None:
        partners[:1] = before
    return partners
