"""Layers for inference: each convolution in one with the norm and the activation after it; the rest as it is.

What is folded is only what is known exactly: convolutions, norms, activations and blocks as this package makes them,
with nothing of a user's on them. torch's and this package's other layers run in the network's precision. What a user
put in, a module or a hook, runs in its place as it is, in float32, on the tensors that it was made for.
"""

import copy
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from residuum.devices import slow_in_place
from residuum.inference.surgery import hooked, is_ordinary, kind, runs_as_its_class_says, settled
from residuum.memory.in_place import set_in_place
from residuum.nn.blocks import Block, PreactBlock
from residuum.nn.freezing import FrozenBatchNorm
from residuum.nn.layers import BlurPool, EfficientChannelAttention, SqueezeExcite, StandardizedConv2d, ZeroPadShortcut
from residuum.nn.resnet import Stage
from residuum.nn.stochastic_depth import StochasticDepth

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.Mish)
_CONVOLUTIONS = (nn.Conv2d, StandardizedConv2d)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth)  # in evaluation
_CONTAINERS = (nn.Sequential, Stage)  # of layers in a row
# Layers whose output is new memory and shares none with their input.
_FRESH = (*_CONVOLUTIONS, *_NORMS, nn.GroupNorm, nn.AvgPool2d, nn.MaxPool2d, nn.ZeroPad2d, BlurPool, ZeroPadShortcut)


class Convolution(nn.Module):
    """act(conv(x) + bias), or act(conv(x) + bias + other) where `other` is given, which may be overwritten."""

    def __init__(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__()
        self.in_channels = conv.in_channels

    def end_in(self, act: nn.Module | None) -> None:
        """Set the activation."""
        raise NotImplementedError


class FoldedConv(Convolution):
    """A `Convolution` of torch's ordinary operations, on any device."""

    def __init__(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__(weight, bias, conv, act)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.adds_over = not slow_in_place(weight.device, weight.dtype)
        self.end_in(act)

    def end_in(self, act: nn.Module | None) -> None:
        self.act = act

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if other is not None:
            x = x.add_(other) if self.adds_over else x + other
        return x if self.act is None else self.act(x)


class Sum(nn.Module):
    """act(branch + shortcut), where the branch does not end in a convolution."""

    def __init__(self, adds_over: bool) -> None:
        super().__init__()
        self.adds_over = adds_over
        self.end_in(None)

    def end_in(self, act: nn.Module | None) -> None:
        """Set the activation."""
        self.act = act

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        x = branch.add_(shortcut) if self.adds_over else branch + shortcut
        return x if self.act is None else self.act(x)


class GatedSum(Sum):
    """act(branch * gate + shortcut), the gate being attention's: one pass over the tensors, written over `shortcut`."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(adds_over=True)
        self.attention: Any = copy.deepcopy(attention).float()
        for name, layer in attention._modules.items():
            if isinstance(layer, nn.Conv2d):
                setattr(self.attention, name, _linear(layer))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        # Channels last on a CPU, pooling is a fifth of the time that a mean takes. Of a program it would fix the size.
        captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        pools = branch.is_cpu and not captured
        pooled = F.avg_pool2d(branch, branch.shape[2:]) if pools else branch.mean((2, 3), keepdim=True)
        gate = self.attention.gate(pooled.flatten(1).float()).to(branch.dtype)
        x = shortcut.addcmul_(branch, gate[:, :, None, None])
        return x if self.act is None else self.act(x)


class FoldedBlock(nn.Module):
    """A residual block for inference; overwrites its input where the shortcut is the identity."""

    def __init__(
        self, enter: list[nn.Module], branch: list[nn.Module], shortcut: list[nn.Module], end: Convolution | Sum
    ) -> None:
        super().__init__()
        self.enter, self.branch, self.shortcut, self.end = _row(enter), _row(branch), _row(shortcut), end

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.enter is None else self.enter(x)
        x = x if self.shortcut is None else self.shortcut(h)
        h = h if self.branch is None else self.branch(h)
        return self.end(h, x)  # type: ignore[no-any-return]


class InFloat32(nn.Module):
    """A user's module as it is: takes and gives float32 in the usual memory format, whatever surrounds it."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.float().contiguous())
        last = torch.channels_last if out.ndim == 4 else torch.preserve_format
        # A hook may have kept the output, which the next block would write over.
        return out.to(self.dtype, copy=True, memory_format=last)  # type: ignore[no-any-return]


class Cast(nn.Module):
    """The input in another precision, channels last, as new memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, copy=True, memory_format=torch.channels_last)


class Fold:
    """How layers are turned into those for inference, for one precision and kind of convolution.

    The layers given are a copy's (`surgery.copied`): they are taken over and changed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, convolution: type[Convolution]) -> None:
        self.dtype, self.convolution = dtype, convolution
        self.slow = slow_in_place(device, dtype)

    def layers(self, given: Iterable[nn.Module | None]) -> list[nn.Module]:
        """Layers in a row, each convolution in one with the norm and the activation that follow it."""
        row: list[nn.Module] = []
        todo = list(without_nothing(given))[::-1]
        while todo:
            layer = todo.pop()
            if (block := self._block(layer)) is not None:
                row.append(block)
                continue
            if not _is_convolution(layer):
                row.append(self._kept(layer))
                continue
            norm = todo.pop() if todo and _follows(layer, todo[-1]) else None
            act = self._kept(todo.pop()) if todo and kind(todo[-1]) in ACTIVATIONS else None
            weight, bias = folded(layer, norm)
            weight = weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
            row.append(self.convolution(weight, bias.to(self.dtype), layer, act))
        return row

    def stage(self, stage: nn.Module) -> nn.Module:
        """A stage with its blocks folded; its own hooks, which see float32, stay on it."""
        container = type(stage) in _CONTAINERS and runs_as_its_class_says(stage)
        if not isinstance(stage, Stage | nn.Sequential) or not container or not hooked(stage):
            return nn.Sequential(*self.layers([stage]))
        children = self.layers(stage)
        stage._modules.clear()
        for i, child in enumerate([Cast(self.dtype), *children, Cast(torch.float32)]):
            stage.add_module(str(i), child)
        return InFloat32(stage, self.dtype)

    def _block(self, block: nn.Module) -> FoldedBlock | None:
        """The block folded; None where it is none of ours, or begins with what may keep or change what it is given."""
        if not isinstance(block, Block) or kind(block) not in (Block, PreactBlock):
            return None
        given = [getattr(block, name) for name in block.branch_layers()]
        enter = [given.pop(0) for _ in range(2)] if block.preact else []
        starts = [next(iter(without_nothing(row)), None) for row in (enter[:1] or given, given, [block.downsample])]
        if starts[0] is None or any(start is not None and kind(start) not in _FRESH for start in starts):
            return None
        gated = block.se if _is_gate(block.se) and not list(without_nothing([block.drop])) else None
        branch = self.layers(layer for layer in given if layer is not gated)
        end: Convolution | Sum = Sum(adds_over=not self.slow)
        if gated is not None:
            end = GatedSum(gated)
        elif branch and isinstance(branch[-1], Convolution) and branch[-1].act is None:
            end = branch.pop()
        if not block.preact:
            last = self.layers([getattr(block, f"act{block.length}")])
            end.end_in(_row(last))
        return FoldedBlock(self.layers(enter), branch, self.layers([block.downsample]), end)

    def _kept(self, layer: nn.Module) -> nn.Module:
        """A layer as it is: in the network's precision where it is known, else in float32."""
        if not _is_known(layer):
            return InFloat32(layer.float(), self.dtype)
        layer = copy.deepcopy(layer)  # the same layer may stand in several places
        if self.slow:
            set_in_place(layer, False)
        # Batch norm takes its statistics in float32 whatever its input is.
        return layer.float() if isinstance(layer, _BatchNorm | FrozenBatchNorm) else layer.to(self.dtype)


def without_nothing(layers: Iterable[nn.Module | None]) -> Iterable[nn.Module]:
    """Layers one after another, without those that do nothing."""
    for layer in layers:
        if layer is None or kind(layer) in _NOTHING:
            continue
        if isinstance(layer, Stage | nn.Sequential) and kind(layer) in _CONTAINERS:
            yield from without_nothing(layer)
        else:
            yield layer


def _row(layers: list[nn.Module]) -> nn.Module | None:
    return None if not layers else layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _is_known(layer: nn.Module) -> bool:
    """Whether a layer and all in it are torch's or ours, and nothing of a user's is on them."""
    known = ("torch.nn.modules.", "residuum.nn.")
    return all(type(m).__module__.startswith(known) and kind(m) is not None and not hooked(m) for m in layer.modules())


def _is_convolution(layer: Any) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution as the blocks make it, not one that somebody put in its place."""
    if kind(layer) not in _CONVOLUTIONS or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    return is_ordinary(settled(layer, "weight")) and is_ordinary(settled(layer, "bias"))


def _follows(conv: nn.Conv2d, norm: Any) -> bool:
    """Whether a layer is a batch norm for the convolution's output that evaluation makes a scale and a shift."""
    if kind(norm) not in _NORMS or norm.running_mean is None or norm.num_features != conv.out_channels:
        return False
    return all(is_ordinary(settled(norm, name)) for name in ("weight", "bias", "running_mean", "running_var"))


def is_mean(pool: nn.Module) -> bool:
    """Whether a layer is the average over all pixels."""
    return kind(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))


def _is_gate(attention: nn.Module | None) -> bool:
    """Whether a layer is attention as the blocks make it."""
    if not isinstance(attention, SqueezeExcite | EfficientChannelAttention) or not _is_known(attention):
        return False
    if isinstance(attention, EfficientChannelAttention):
        return kind(attention.conv) is nn.Conv1d
    squeezes = all(
        _is_convolution(m) and (m.kernel_size, m.padding, m.groups) == ((1, 1), (0, 0), 1)
        for m in (attention.fc1, attention.fc2)
    )
    return squeezes and kind(attention.act) in ACTIVATIONS


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution for tensors (N, C)."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, device="meta")
    weight, bias = settled(conv, "weight"), settled(conv, "bias")
    assert weight is not None
    linear.weight = nn.Parameter(weight.detach().flatten(1).float(), requires_grad=False)
    bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
    linear.register_parameter("bias", bias)
    return linear


def folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias in float32 of the plain convolution that does what conv, then norm in evaluation, do."""
    given, shift = settled(conv, "weight"), settled(conv, "bias")
    assert given is not None
    weight = (conv.filters() if isinstance(conv, StandardizedConv2d) else given).double()
    bias = weight.new_zeros(len(weight)) if shift is None else shift.double()
    if norm is not None:
        mean, var = settled(norm, "running_mean"), settled(norm, "running_var")
        assert mean is not None and var is not None
        scale = (var.double() + norm.eps).rsqrt()
        factor, shift = settled(norm, "weight"), settled(norm, "bias")
        scale = scale if factor is None else scale * factor.double()
        weight, bias = weight * scale[:, None, None, None], (bias - mean.double()) * scale
        bias = bias if shift is None else bias + shift.double()
    return weight.float(), bias.float()
