"""One step of training and one pass of evaluation: plain functions of a network, which may be wrapped or compiled."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from residuum.train.losses import cross_entropy, right_answers

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits (N, classes) and targets, class ids (N,) or shares (N, classes)


class Counted(NamedTuple):
    """What a pass over some images gave: their mean loss and how many were right, both still on the device."""

    loss: Tensor
    correct: Tensor


def forward(
    net: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, *, bf16: bool, loss: Loss = cross_entropy
) -> Counted:
    """The loss of images (N, C, H, W) with targets, and how many are right: by their shares where images are mixed.

    `bf16` computes convolutions and matrix products in bf16; weights, sums and the loss stay in fp32.
    """
    # Weights in bf16 belong to the block that uses them, not to the whole pass: a recomputed block frees them.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        logits = net(images)
    return Counted(loss(logits, targets), right_answers(logits, targets))


def train_step(
    net: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    bf16: bool = False,
    loss: Loss = cross_entropy,
    lap: Callable[[Literal["forward", "backward"]], None] = lambda phase: None,
) -> Counted:
    """One step: forward and backward pass, then the optimizer's. Nothing is read from the device.

    `lap` is told when each pass is over.
    """
    optimizer.zero_grad(set_to_none=True)  # before the forward pass, which then has their memory
    found = forward(net, images, targets, bf16=bf16, loss=loss)
    lap("forward")
    found.loss.backward()  # type: ignore[no-untyped-call]
    lap("backward")
    optimizer.step()
    return Counted(found.loss.detach(), found.correct)


class Evaluation(NamedTuple):
    """The sum of the losses of some images, how many of them are right, and how many there are."""

    total: float
    correct: int
    images: int

    @property
    def loss(self) -> float:
        """The mean over the images; NaN of none."""
        return self.total / self.images if self.images else float("nan")

    @property
    def accuracy(self) -> float:
        """The share that is right, 0 to 1."""
        return self.correct / self.images if self.images else float("nan")


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    bf16: bool = False,
    loss: Loss = cross_entropy,
    tick: Callable[[int], None] = lambda batches: None,
) -> Evaluation:
    """Loss and right answers over all batches, in evaluation mode; the network's mode is put back afterwards.

    Right answers are counted in whole numbers. `tick` is called after each batch with how many there were.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    losses: list[tuple[Tensor, int]] = []
    correct: Tensor | int = 0
    images_seen = 0
    try:
        for images, labels in batches:
            found = forward(net, images, labels, bf16=bf16, loss=loss)
            losses.append((found.loss, len(labels)))
            correct = correct + found.correct
            images_seen += len(labels)
            tick(len(losses))
    finally:
        for module, training in modes:  # a frozen norm stays in evaluation
            module.training = training
    total = sum(float(mean) * count for mean, count in losses)
    return Evaluation(total, int(correct), images_seen)
