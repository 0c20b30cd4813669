"""What a stage is made of: basic and bottleneck blocks, their shortcuts, attention, anti-aliasing, stochastic depth."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.config import BlockPlan, ResNetConfig

# On processors with AMX torch's bf16 kernels that write over their input take twice as long as those that do not.
SLOW_IN_PLACE = torch.cpu.get_capabilities().get("amx_bf16", False)


def in_place(x: Tensor) -> bool:
    """Whether writing over x is no slower than to new memory; meta tensors stand for the CPU's."""
    return x.dtype != torch.bfloat16 or not SLOW_IN_PLACE or x.device.type not in ("cpu", "meta")


class ReLU(nn.ReLU):
    """The larger of x and 0, written over x where `in_place` says so."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x) if in_place(x) else torch.relu(x)


def add(x: Tensor, y: Tensor) -> Tensor:
    """The sum in x's type, written over x where `in_place` says so."""
    return x.add_(y) if in_place(x) or x.dtype != y.dtype else x + y


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "mish": lambda: nn.Mish(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
}


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are brought to mean 0 and variance 1 first (1903.10520); timm's `StdConv2d` in BiT."""

    def filters(self) -> Tensor:
        """The weights that convolve."""
        filters = F.batch_norm(self.weight.flatten(1)[None], None, None, training=True, eps=1e-8)
        return filters.view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters(), None, self.stride, self.padding, self.dilation, self.groups)


def conv(
    config: ResNetConfig, inp: int, out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Convolution without bias, padded so that (N, inp, H, W) becomes (N, out, ceil(H / stride), ceil(W / stride))."""
    kind = StandardizedConv2d if config.weight_standardization else nn.Conv2d
    return kind(inp, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def norm(config: ResNetConfig, channels: int) -> nn.Module:
    """Batch norm, or group norm of 32 groups (fewer where 32 does not divide the channels)."""
    if config.norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(32, channels), channels)


class BlurPool(nn.Module):
    """Binomial 3x3 low-pass filter, then subsampling (1904.11486): (N, C, H, W) -> (N, C, ceil(H / s), ceil(W / s))."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        row = torch.tensor([0.25, 0.5, 0.25])
        self.filter: Tensor
        self.register_buffer("filter", (row[:, None] * row)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        # A row or column of one pixel has no neighbour to reflect.
        x = F.pad(x, (1, 1, 1, 1), mode="reflect" if height > 1 and width > 1 else "replicate")
        return F.conv2d(x, self.filter.expand(channels, 1, 3, 3), stride=self.stride, groups=channels)


def antialias(config: ResNetConfig, stride: int) -> nn.Module:
    """What subsamples where a stride was taken out of a convolution; timm's `BlurPool2d` or `AvgPool2d`.

    The average pool rounds up like the convolution it replaces, so that odd sizes still fit the shortcut.
    """
    return BlurPool(stride) if config.antialias == "blur" else nn.AvgPool2d(stride, ceil_mode=True)


class SqueezeExcite(nn.Module):
    """x * sigmoid(fc2(relu(fc1(mean(x))))) (1709.01507); reduced channels rounded to 8 as timm's `SEModule` does."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        reduced = max(8, int(channels * ratio + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def gate(self, pooled: Tensor) -> Tensor:
        """What each channel is multiplied by, from its mean."""
        gate: Tensor = self.fc2(F.relu(self.fc1(pooled), inplace=True))
        return gate.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class EfficientChannelAttention(nn.Module):
    """x * sigmoid(conv1d(mean(x))) over channels, kernel from their number (1910.03151); timm's `EcaModule`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        t = int(abs(math.log2(channels) + 1) / 2)
        kernel = max(t if t % 2 else t + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        """What each channel is multiplied by, from its mean."""
        gate: Tensor = self.conv(pooled.flatten(1).unsqueeze(1)).sigmoid()
        return gate.view(pooled.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


ATTENTION: dict[str, Callable[[ResNetConfig, int], nn.Module | None]] = {
    "none": lambda config, channels: None,
    "se": lambda config, channels: SqueezeExcite(channels, config.attention_ratio),
    "eca": lambda config, channels: EfficientChannelAttention(channels),
}


class ZeroPadShortcut(nn.Module):
    """Option A (1512.03385, section 3.3): subsample, then add channels of zeros, half before and half after."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.stride, extra = plan.stride, plan.out_channels - plan.in_channels
        self.pad = (0, 0, 0, 0, extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        # An average over one pixel subsamples as slicing does, and its backward pass writes the gradient only once.
        return F.pad(F.avg_pool2d(x, 1, self.stride) if self.stride > 1 else x, self.pad)


def shortcut(config: ResNetConfig, plan: BlockPlan) -> nn.Module | None:
    """The projection of a block that changes the shape, or None for the identity.

    A pre-activation block's has no norm: its input is already normalised (1603.05027, timm's `resnetv2`).
    """
    if not plan.reshapes:
        return None
    if config.downsample == "pad":
        return ZeroPadShortcut(plan)
    inp, out, stride = plan.in_channels, plan.out_channels, plan.stride
    if config.downsample == "avg":
        layers = [_average(plan), conv(config, inp, out, 1)]
    else:
        same_size = stride == 1 and plan.dilation == 1
        kernel = 1 if same_size else config.downsample_kernel
        layers = [conv(config, inp, out, kernel, stride, plan.first_dilation if kernel > 1 else 1)]
    return nn.Sequential(*layers, *([] if config.preact else [norm(config, out)]))


def _average(plan: BlockPlan) -> nn.Module:
    if plan.stride > 1:
        return nn.AvgPool2d(2, plan.stride, ceil_mode=True, count_include_pad=False)
    if plan.dilation > 1:  # a stride turned into dilation still averages; zeros at the far edge keep the size
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
    return nn.Identity()


class _Skipped(torch.autograd.Function):
    """The identity on x that gives zero gradients, not none, to the parameters of a branch that did not run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.clone()  # what follows may work in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(p) for p in ctx.saved_tensors))


class StochasticDepth(nn.Module):
    """Drops a branch in training at `rate` and scales what survives by 1 / (1 - rate) (1603.09382).

    `row` decides for each sample. `batch` decides for the whole batch; `skips` says so before the branch runs, so that
    its compute is saved, and all ranks of a distributed job follow the first. Random numbers are torch's own.
    """

    def __init__(self, rate: float, mode: str) -> None:
        super().__init__()
        self.rate, self.mode = rate, mode

    def skips(self, x: Tensor) -> bool:
        """Whether this pass leaves the branch out altogether. Compiled, no pass does: the graph has no branches."""
        if not self.training or self.rate == 0 or self.mode == "row" or torch.compiler.is_compiling():
            return False
        draw = torch.rand(())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            draw = draw.to(x.device)
            torch.distributed.broadcast(draw, 0)
        return bool(draw < self.rate)

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        if self.mode == "batch" and not torch.compiler.is_compiling():  # it was not skipped
            return branch / (1 - self.rate)
        rows = branch.shape[0] if self.mode == "row" else 1
        keep = torch.rand((rows, 1, 1, 1), device=branch.device) >= self.rate
        return branch * (keep / (1 - self.rate)).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}, mode={self.mode}"


def basic_branch(config: ResNetConfig, plan: BlockPlan, stride: int) -> tuple[list[nn.Conv2d], int]:
    """3x3, 3x3 (1512.03385, figure 5 left), and which of them strides."""
    convs = [
        conv(config, plan.in_channels, plan.first_width, 3, stride, plan.first_dilation),
        conv(config, plan.first_width, plan.out_channels, 3, dilation=plan.dilation),
    ]
    return convs, 1


def bottleneck_branch(config: ResNetConfig, plan: BlockPlan, stride: int) -> tuple[list[nn.Conv2d], int]:
    """1x1, 3x3, 1x1 (1512.03385, figure 5 right), the 3x3 in groups (1611.05431), and which of them strides."""
    outer, inner = (stride, 1) if config.stride_on == "1x1" else (1, stride)
    convs = [
        conv(config, plan.in_channels, plan.first_width, 1, outer),
        conv(config, plan.first_width, plan.width, 3, inner, plan.first_dilation, config.groups),
        conv(config, plan.width, plan.out_channels, 1),
    ]
    return convs, 1 if config.stride_on == "1x1" else 2


BRANCHES = {"basic": basic_branch, "bottleneck": bottleneck_branch}


class Block(nn.Module):
    """Residual block: act(shortcut(x) + f(x)); pre-activated, with h = act(norm(x)): shortcut(x or h) + f(h).

    f is the branch: its convolutions, each with a norm, an activation between two, attention at the end.
    (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    conv1: nn.Module
    bn1: nn.Module
    act1: nn.Module

    def __init__(self, config: ResNetConfig, plan: BlockPlan) -> None:
        super().__init__()
        self.preact = config.preact
        filtered = config.antialias != "none" and (plan.stride > 1 or plan.first_dilation != plan.dilation)
        convs, strided = BRANCHES[plan.kind](config, plan, 1 if filtered else plan.stride)
        self.length = len(convs)
        for i, layer in enumerate(convs, 1):
            self.add_module(f"conv{i}", layer)
            self.add_module(f"bn{i}", norm(config, layer.in_channels if self.preact else layer.out_channels))
            self.add_module(f"act{i}", ACTIVATIONS[config.activation]())
        # The filter takes the stride over, after the activation that follows the convolution which would have had it.
        self.filter_after = strided if filtered else 0
        self.aa = antialias(config, plan.stride) if filtered else None
        self.se = ATTENTION[config.attention](config, plan.out_channels)
        self.drop = StochasticDepth(plan.drop_rate, config.stochastic_depth_mode) if plan.drop_rate > 0 else None
        self.downsample = shortcut(config, plan)
        # Names of the branch's layers, in order: up to the first convolution, to each other one, and what comes after.
        first = 0 if self.preact else 1
        between = [
            (f"bn{i - first}", f"act{i - first}", *(["aa"] if self.filter_after == i - 1 else []), f"conv{i}")
            for i in range(2, self.length + 1)
        ]
        self.segments = (("conv1",), *between, (*([] if self.preact else [f"bn{self.length}"]), "se", "drop"))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.body(x, self.skips(x)))

    def skips(self, x: Tensor) -> bool:
        """Whether this pass leaves the branch out for the whole batch."""
        return self.drop is not None and self.drop.skips(x)

    def body(self, x: Tensor, skip: bool) -> Tensor:
        """The sum of shortcut and branch, which is left out where `skip` says so."""
        h = self.enter(x)
        if skip:
            x = x if self.downsample is None else self.downsample(h)
            return _Skipped.apply(x, *self._branch_parameters())  # type: ignore[no-any-return]
        branch = self.run(h, *self.segments)
        # The shortcut comes last: the allocator then reuses what the branch has freed.
        return add(branch, x if self.downsample is None else self.downsample(h))

    def enter(self, x: Tensor) -> Tensor:
        """What the first convolution and a shortcut that reshapes take."""
        return self.act1(self.bn1(x)) if self.preact else x

    def between(self, x: Tensor, i: int) -> Tensor:
        """From the output of convolution i - 1 to that of convolution i: norm, activation, filter, convolution."""
        return self.run(x, self.segments[i - 1])

    def leave(self, x: Tensor) -> Tensor:
        """The end of the branch: norm, attention, stochastic depth."""
        return self.run(x, self.segments[-1])

    def run(self, x: Tensor, *segments: tuple[str, ...]) -> Tensor:
        """Layers of the branch in a row; no name but `x` holds a tensor, so that each is freed as soon as it can be."""
        layers = self._modules  # as attributes they are searched for, which a batch of one notices
        for name in chain(*segments):
            layer = layers.get(name)
            x = x if layer is None else layer(x)
        return x

    def finish(self, x: Tensor) -> Tensor:
        """The activation after the sum."""
        return x if self.preact else getattr(self, f"act{self.length}")(x)

    def zero_init(self) -> None:
        """Make the branch start at zero: its last norm, or its last convolution where no norm follows (timm)."""
        last = getattr(self, f"{'conv' if self.preact else 'bn'}{self.length}")
        nn.init.zeros_(last.weight)

    def _branch_parameters(self) -> list[Tensor]:
        return [p for name, p in self.named_parameters() if not name.startswith("downsample") and p.requires_grad]
