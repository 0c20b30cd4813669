"""Which layer a config means: convolution, norm, activation, anti-aliasing, attention; and those that torch has not."""

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.config import BlockPlan, ResNetConfig

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
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


@torch.fx.wrap  # what it does depends on the size, so a trace keeps the call
def blurred(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Each channel of (N, C, H, W) filtered by a (1, 1, 3, 3) kernel, then subsampled."""
    channels, height, width = x.shape[1:]
    # A row or column of one pixel has no neighbour to reflect.
    x = F.pad(x, (1, 1, 1, 1), mode="reflect" if height > 1 and width > 1 else "replicate")
    return F.conv2d(x, kernel.expand(channels, 1, 3, 3), stride=stride, groups=channels)


class BlurPool(nn.Module):
    """Binomial 3x3 low-pass filter, then subsampling (1904.11486): (N, C, H, W) -> (N, C, ceil(H / s), ceil(W / s)).

    The filter is no part of the state dict, as in timm: it is made again wherever its tensor is made anew.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.filter: Tensor
        self.register_buffer("filter", torch.empty(1, 1, 3, 3), persistent=False)
        self.reset_parameters()

    def reset_parameters(self, like: Tensor | None = None) -> None:
        """Make the filter anew, of its own type and on its own device or on those of another tensor."""
        like = self.filter if like is None else like
        row = torch.tensor([0.25, 0.5, 0.25], dtype=like.dtype, device=like.device)
        self.filter = (row[:, None] * row)[None, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_parameters()  # `to_empty` leaves it with whatever was in memory
        return self

    def forward(self, x: Tensor) -> Tensor:
        return blurred(x, self.filter, self.stride)


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
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def gate(self, pooled: Tensor) -> Tensor:
        """What each channel is multiplied by, from its mean."""
        gate: Tensor = self.fc2(self.act(self.fc1(pooled)))
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
