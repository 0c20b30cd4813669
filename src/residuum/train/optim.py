"""Optimizer, learning rate, loss and average of the weights, each built from the recipe."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from residuum.nn.resnet import ResNet
from residuum.train import schedules
from residuum.train.groups import param_groups
from residuum.train.losses import binary_cross_entropy, cross_entropy
from residuum.train.optimizers import Lamb, Muon
from residuum.train.recipe import AverageSettings, LossSettings, OptimizerSettings, Recipe

_FUSED = ("cpu", "cuda", "mps")  # devices on which one kernel updates all parameters


def make_optimizer(network: ResNet, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer of all of a network's parameters, frozen ones too."""
    groups: Any = param_groups(
        network,
        weight_decay=settings.weight_decay,
        decay=settings.decay,
        bias_lr=settings.bias_lr,
        head_lr=settings.head_lr,
        layer_decay=settings.layer_decay,
        muon=settings.name == "muon",
        others_lr=settings.others_lr,
    )
    lr, betas = settings.lr, settings.betas
    momentum: Any = {"momentum": settings.momentum, "nesterov": settings.nesterov and settings.momentum > 0}
    fused = all(p.device.type in _FUSED for p in network.parameters())
    optimizer: torch.optim.Optimizer
    match settings.name:
        case "sgd":
            optimizer = torch.optim.SGD(groups, lr=lr, **momentum, fused=fused)
        case "adamw":
            optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=settings.eps or 1e-8, fused=fused)
        case "lamb":
            return Lamb(groups, lr=lr, betas=betas, eps=settings.eps or 1e-6, clip=settings.clip or 1.0)
        case "muon":
            optimizer = Muon(groups, lr=lr, **momentum)
    if settings.clip is not None:
        optimizer.register_step_pre_hook(partial(_clip, settings.clip))
    return optimizer


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Let each step's statistics have this share in the running ones of every batch norm; torch's is 0.1."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum


def _clip(largest: float, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], largest)


def state_kept(settings: OptimizerSettings) -> str:
    """One of the planner's `OPTIMIZERS`, which keeps as much for each parameter."""
    if settings.name in ("adamw", "lamb"):
        return "adamw"
    return "sgd" if settings.momentum or settings.name == "muon" else "none"


def learning_rate(step: int, recipe: Recipe, steps: int) -> float:
    """The learning rate of a step of a run, counted from 0, where an epoch has that many `steps`."""
    settings, peak = recipe.schedule, recipe.optimizer.lr
    total = recipe.epochs * steps

    def after(length: float) -> int:
        return schedules.steps_of(length, total, recipe.epochs)

    warmup, start, end = after(settings.warmup), settings.warmup_start, settings.min_lr / peak
    match settings.name:
        case "cosine":
            share = schedules.cosine(step, total, warmup=warmup, start=start, end=end)
        case "linear":
            share = schedules.linear(step, total, warmup=warmup, start=start, end=end)
        case "triangle":
            share = schedules.triangle(step, total, peak=warmup, start=start, end=end)
        case "step":
            milestones = [after(milestone) for milestone in settings.milestones]
            share = schedules.steps(
                step, total, milestones=milestones, factor=settings.factor, warmup=warmup, start=start, end=end
            )
        case "constant":
            share = schedules.constant(step, total, warmup=warmup, start=start)
    return peak * share


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step have this learning rate, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def make_loss(
    settings: LossSettings, *, train: bool = True, weights: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits (N, classes) and targets, ids or shares; without smoothing where it is not to `train`.

    `weights` are those of classes (classes,), None for all alike.
    """
    label_smoothing = settings.label_smoothing if train else 0.0
    if settings.name == "ce":
        return partial(cross_entropy, label_smoothing=label_smoothing, weights=weights)
    return partial(
        binary_cross_entropy,
        label_smoothing=label_smoothing,
        weights=weights,
        threshold=settings.threshold,
        sum_classes=settings.sum_classes,
    )


def make_average(network: nn.Module, settings: AverageSettings, total: int) -> AveragedModel | None:
    """The moving average of a network's parameters and buffers over a window of the `total` steps, or None.

    While fewer steps than the window have been taken it is their plain mean, so that the first weights do not stay in
    it. Whole numbers, such as how many batches a norm has seen, are the network's own, and so are all buffers where the
    settings say so.
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

    return AveragedModel(network, multi_avg_fn=mix, use_buffers=settings.buffers == "average")
