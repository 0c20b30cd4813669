"""What training makes small: cross-entropy, and binary cross-entropy over the classes.

Targets are class ids (N,), or shares of each class (N, classes): mixed images have those, and images of several
classes. Label smoothing happens here and nowhere else: whatever the targets, a share of each is spread evenly over all
classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_targets(labels: Tensor, classes: int) -> Tensor:
    """Class ids (N,) as shares (N, classes) in fp32; shares as they are."""
    return F.one_hot(labels, classes).float() if labels.ndim == 1 else labels


def smoothed(targets: Tensor, label_smoothing: float) -> Tensor:
    """Shares (N, classes) of which `label_smoothing` is spread evenly over all classes."""
    return targets * (1 - label_smoothing) + label_smoothing / targets.shape[1] if label_smoothing else targets


def cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Mean over the images (N, classes) of the cross-entropy of softmax(logits), in fp32 at the least.

    With `weights` of classes (classes,) an image counts by that of its class, before smoothing; of a mixed image, by
    the mean over its shares. The mean is still that over images.
    """
    logits = _wide(logits)
    targets = targets if targets.ndim == 1 else targets.to(logits.dtype)
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return (losses * _of_images(weights, targets, losses)).mean()


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    threshold: float | None = None,
    sum_classes: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Whether each class is in the image, asked apart: mean over images (N, classes) and classes, in fp32 or wider.

    With a `threshold` a class whose share is above it is wholly in the image and any other not at all, so that an
    image mixed of two has two classes, not shares of two (2110.00476); smoothing comes after it. `sum_classes` adds
    up the classes of an image before the mean over images: `classes` times the loss, so its learning rate is another.
    `weights` are as for `cross_entropy`.
    """
    logits = _wide(logits)
    shares = soft_targets(targets, logits.shape[1])
    wanted = shares if threshold is None else shares > threshold
    wanted = smoothed(wanted.to(logits.dtype), label_smoothing)
    if weights is None:
        loss = F.binary_cross_entropy_with_logits(logits, wanted)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        loss = (losses * _of_images(weights, targets, losses)).mean()
    return loss * logits.shape[1] if sum_classes else loss


def right_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """How many images (N, classes) are right: a whole number where targets are class ids, of int64.

    Where they are shares, an image counts by the share of the class that is answered, in fp64: of an image that is 0.7
    a cat and 0.3 a dog, "dog" counts 0.3.
    """
    right = answers(logits, targets)
    return right.sum() if targets.ndim == 1 else right.sum(dtype=exact(targets.device))


def answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each image (N,) whether it is right, or the share of the class that is answered, as `right_answers` counts."""
    answered = logits.argmax(1)
    return answered == targets if targets.ndim == 1 else targets.gather(1, answered[:, None])[:, 0]


def _of_images(weights: Tensor, targets: Tensor, like: Tensor) -> Tensor:
    """The weight of each image (N,), by its class (N,) or its shares of classes (N, classes)."""
    weights = weights.to(like.device, like.dtype)
    return weights[targets] if targets.ndim == 1 else targets.to(like.dtype) @ weights


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's devices do not have
