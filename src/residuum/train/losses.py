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


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the images (N, classes) of the cross-entropy of softmax(logits), in fp32 at the least."""
    logits = _wide(logits)
    targets = targets if targets.ndim == 1 else targets.to(logits.dtype)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    threshold: float | None = None,
    sum_classes: bool = False,
) -> Tensor:
    """Whether each class is in the image, asked apart: mean over images (N, classes) and classes, in fp32 or wider.

    With a `threshold` a class whose share is above it is wholly in the image and any other not at all, so that an
    image mixed of two has two classes, not shares of two (2110.00476); smoothing comes after it. `sum_classes` adds
    up the classes of an image before the mean over images: `classes` times the loss, so its learning rate is another.
    """
    logits = _wide(logits)
    targets = soft_targets(targets, logits.shape[1])
    if threshold is not None:
        targets = targets > threshold
    loss = F.binary_cross_entropy_with_logits(logits, smoothed(targets.to(logits.dtype), label_smoothing))
    return loss * logits.shape[1] if sum_classes else loss


def right_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """How many images (N, classes) are right: a whole number where targets are class ids, of int64.

    Where they are shares, an image counts by the share of the class that is answered, in fp64: of an image that is 0.7
    a cat and 0.3 a dog, "dog" counts 0.3.
    """
    answers = logits.argmax(1)
    if targets.ndim == 1:
        return (answers == targets).sum()
    return targets.gather(1, answers[:, None]).sum(dtype=_exact(targets.device))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's devices do not have
