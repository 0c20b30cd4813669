"""What a stage is made of: basic and bottleneck blocks, with their shortcuts."""

from typing import Any

from torch import Tensor, nn

from residuum.config import BlockPlan, ResNetConfig
from residuum.nn.layers import ACTIVATIONS, ATTENTION, ZeroPadShortcut, antialias, conv, norm
from residuum.nn.stochastic_depth import StochasticDepth, without


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
    """Residual block (1512.03385): act(shortcut(x) + f(x)), f being the branch.

    (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)). `inplace` says whether the sum is
    written over the branch's output, as an activation's attribute of that name does.
    """

    preact = False
    conv1: nn.Module
    bn1: nn.Module
    act1: nn.Module
    aa: nn.Module | None
    se: nn.Module | None
    drop: StochasticDepth | None
    downsample: nn.Module | None

    def __init__(self, config: ResNetConfig, plan: BlockPlan) -> None:
        super().__init__()
        filtered = config.antialias != "none" and (plan.stride > 1 or plan.first_dilation != plan.dilation)
        convs, strided = BRANCHES[plan.kind](config, plan, 1 if filtered else plan.stride)
        self.length, self.inplace = len(convs), True
        # The filter takes the stride over, after the activation that follows the convolution which would have had it.
        self.filter_after = strided if filtered else 0
        for i, layer in enumerate(convs, 1):
            self.add_module(f"conv{i}", layer)
            self.add_module(f"bn{i}", norm(config, layer.in_channels if self.preact else layer.out_channels))
            self.add_module(f"act{i}", ACTIVATIONS[config.activation]())
        drop = StochasticDepth(plan.drop_rate, config.stochastic_depth_mode) if plan.drop_rate > 0 else None
        self.register_module("aa", antialias(config, plan.stride) if filtered else None)
        self.register_module("se", ATTENTION[config.attention](config, plan.out_channels))
        self.register_module("drop", drop)
        self.register_module("downsample", shortcut(config, plan))

    def branch_layers(self) -> list[str]:
        """The names of the branch's layers, in the order in which `forward` runs them."""
        order = ("bn", "act", "conv") if self.preact else ("conv", "bn", "act")
        names = [f"{kind}{i}" for i in range(1, self.length + 1) for kind in order]
        if self.filter_after:
            names.insert(names.index(f"act{self.filter_after + self.preact}") + 1, "aa")
        if not self.preact:
            names.pop()  # the last activation comes after the sum
        return [*names, *(name for name in ("se", "drop") if self._modules.get(name) is not None)]

    def forward(self, x: Tensor) -> Tensor:
        layers: dict[str, Any] = self._modules  # as attributes they are searched for: a batch of one notices
        if layers["drop"] is not None and self.skips(x):
            return self.close(self.skipped(x))
        h = layers["conv1"](x)
        h = layers["bn1"](h)
        h = layers["act1"](h)
        if self.filter_after == 1:
            h = layers["aa"](h)
        h = layers["conv2"](h)
        h = layers["bn2"](h)
        if self.length == 3:
            h = layers["act2"](h)
            if self.filter_after == 2:
                h = layers["aa"](h)
            h = layers["conv3"](h)
            h = layers["bn3"](h)
        if layers["se"] is not None:
            h = layers["se"](h)
        if layers["drop"] is not None:
            h = layers["drop"](h)
        # The shortcut comes last: the allocator then reuses what the branch has freed.
        h = self.add(h, x if layers["downsample"] is None else layers["downsample"](x))
        return self.close(h)

    def enter(self, x: Tensor) -> Tensor:
        """What the first convolution and a shortcut that reshapes take."""
        return x

    def close(self, x: Tensor) -> Tensor:
        """What follows the sum: the last activation."""
        return self._modules[f"act{self.length}"](x)  # type: ignore[no-any-return, misc]

    def add(self, branch: Tensor, x: Tensor) -> Tensor:
        """The sum, in the branch's type."""
        if self.inplace:
            branch += x
            return branch
        return (branch + x).to(branch.dtype)

    def skips(self, x: Tensor) -> bool:
        """Whether this pass leaves the branch out for the whole batch."""
        return self.drop is not None and self.drop.skips(x)

    def skipped(self, x: Tensor) -> Tensor:
        """The shortcut by itself; the branch's parameters get zero gradients, not none."""
        x = x if self.downsample is None else self.downsample(self.enter(x))
        return without(x, [p for n, p in self.named_parameters() if not n.startswith("downsample") and p.requires_grad])

    def zero_init(self) -> None:
        """Make the branch start at zero: its last norm, or its last convolution where no norm follows (timm)."""
        last = getattr(self, f"{'conv' if self.preact else 'bn'}{self.length}")
        nn.init.zeros_(last.weight)


class PreactBlock(Block):
    """Residual block with pre-activation (1603.05027): shortcut(x) + f(x); one that projects takes act(norm(x))."""

    preact = True

    def forward(self, x: Tensor) -> Tensor:
        layers: dict[str, Any] = self._modules
        if layers["drop"] is not None and self.skips(x):
            return self.skipped(x)
        first = layers["bn1"](x)
        first = layers["act1"](first)
        h = layers["conv1"](first)
        h = layers["bn2"](h)
        h = layers["act2"](h)
        if self.filter_after == 1:
            h = layers["aa"](h)
        h = layers["conv2"](h)
        if self.length == 3:
            h = layers["bn3"](h)
            h = layers["act3"](h)
            if self.filter_after == 2:
                h = layers["aa"](h)
            h = layers["conv3"](h)
        if layers["se"] is not None:
            h = layers["se"](h)
        if layers["drop"] is not None:
            h = layers["drop"](h)
        return self.add(h, x if layers["downsample"] is None else layers["downsample"](first))

    def enter(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(x))  # type: ignore[no-any-return]

    def close(self, x: Tensor) -> Tensor:
        return x
