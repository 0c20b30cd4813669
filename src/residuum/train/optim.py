"""Optimizer, learning rate and average of the weights, each built from the recipe."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from residuum.train.recipe import AverageSettings, OptimizerSettings, ScheduleSettings

_FUSED = ("cpu", "cuda", "mps")  # devices on which one kernel updates all parameters


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum over a network's parameters; norms and biases, of one dimension, do not decay."""
    parameters = list(network.parameters())
    decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=all(p.device.type in _FUSED for p in parameters),
    )


def rate(step: int, *, total: int, warmup: float) -> float:
    """The learning rate of a step as a share of its peak: a straight rise, then half a cosine down (1608.03983)."""
    rise = round(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))) / 2


def learning_rate(step: int, *, total: int, optimizer: OptimizerSettings, schedule: ScheduleSettings) -> float:
    """The learning rate of a step, counted from 0, of a run of `total` steps."""
    return optimizer.lr * rate(step, total=total, warmup=schedule.warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step have this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_average(network: nn.Module, settings: AverageSettings, total: int) -> AveragedModel | None:
    """The moving average of a network's parameters and buffers over a window of the `total` steps, or None.

    While fewer steps than the window have been taken it is their plain mean, so that the first weights do not stay in
    it. Whole numbers, such as how many batches a norm has seen, are the network's own.
    """
    if settings.window == 0:
        return None
    least = 1 / max(settings.window * total, 1.0)

    def mix(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        share = (1 / (torch.as_tensor(count) + 1)).clamp_min(least)
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share.to(mean.dtype))
            else:
                mean.copy_(value)

    return AveragedModel(network, multi_avg_fn=mix, use_buffers=True)
