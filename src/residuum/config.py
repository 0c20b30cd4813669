"""The architecture as data: `ResNetConfig`, and the plan of stages and blocks that follows from it. No torch here."""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from residuum.errors import ConfigError, quoted
from residuum.validation import AtLeast, Within, check, parse_json, parse_toml, refuse_unknown, toml_lines

BlockKind = Literal["bottleneck", "basic"]
Stem = Literal["conv7", "deep", "tiered", "conv3"]
StemPool = Literal["max", "max0", "conv", "none"]
Downsample = Literal["conv", "avg", "pad"]
StrideOn = Literal["3x3", "1x1"]
Attention = Literal["none", "se", "eca"]
Antialias = Literal["none", "blur", "avg"]
Norm = Literal["batch", "group"]
Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu", "mish", "hardswish"]
DropMode = Literal["row", "batch"]

EXPANSION = {"basic": 1, "bottleneck": 4}
CONVS = {"basic": 2, "bottleneck": 3}
_MOST = 2**20  # channels, groups and classes: beyond it no weights could be held
_MOST_STAGES, _MOST_WEIGHTS = 16, 10**11


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One residual block: its channels, where it strides or dilates, and how often training drops its branch."""

    kind: BlockKind
    in_channels: int
    first_width: int  # channels out of the branch's first convolution
    width: int  # channels inside the branch after it
    out_channels: int
    stride: int
    dilation: int  # of the block's stage
    first_dilation: int  # of the stage before: what the block's first 3x3 still uses
    drop_rate: float

    @property
    def reshapes(self) -> bool:
        """Whether the shortcut has to change the shape and so cannot be the identity."""
        return self.stride != 1 or self.in_channels != self.out_channels


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The blocks of one stage, the channels it puts out and its stride with respect to the image."""

    blocks: tuple[BlockPlan, ...]
    channels: int
    stride: int

    @property
    def widest(self) -> tuple[int, ...]:
        """The channels of all the stage's tensors that are not its input."""
        first = self.blocks[0]
        return self.channels, first.first_width, first.width


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network as data: comparable, hashable, checked when it is made.

    The defaults are ResNet-50 v1.5 (1512.03385, with the stride in the 3x3). Raises `ConfigError`.
    """

    # kind of the blocks (1512.03385): one word for all stages, or one for each
    block: BlockKind | tuple[BlockKind, ...] = "bottleneck"
    # number of blocks in each stage
    depths: Annotated[tuple[int, ...], AtLeast(1, 1000)] = (3, 4, 6, 3)
    # number of channels in each stage, before the block multiplies them (a bottleneck by 4, a basic block by 1)
    widths: Annotated[tuple[int, ...], AtLeast(1, _MOST)] = (64, 128, 256, 512)
    # number of groups of a bottleneck's 3x3 convolution (1611.05431); ResNeXt 32x4d has 32, of 4 channels each
    groups: Annotated[int, AtLeast(1, _MOST)] = 1
    # number of channels in each group where the stage's width is 64; Wide-ResNet-50-2 has 128 (1605.07146)
    width_per_group: Annotated[int, AtLeast(1, _MOST)] = 64
    # divisor of the channels of each branch's first convolution; SENet-154 has 2
    reduce_first: Annotated[int, AtLeast(1, _MOST)] = 1
    # factor on the channels of stem, stages and head; what comes out is rounded to multiples of 8 and of groups
    width: Annotated[float, Within("[0.01, 64]")] = 1.0
    # convolutions of the stem: one 7x7, three 3x3 (1812.01187), three 3x3 that widen, one 3x3 for small images
    stem: Stem = "conv7"
    # number of channels that the stem puts out
    stem_width: Annotated[int, AtLeast(1, _MOST)] = 64
    # pool of the stem: max, max with zeros at the edge (BiT), a strided convolution in its place (2103.07579), none
    stem_pool: StemPool = "max"
    # shortcut that changes the shape: a strided convolution, an average pool and a 1x1 (ResNet-D), zeros (option A)
    downsample: Downsample = "conv"
    # kernel of the strided convolution in a shortcut; SENet-154 has 3
    downsample_kernel: int = 1
    # convolution of a bottleneck that strides: the 3x3 in v1.5, the first 1x1 in v1 (Caffe, detectron2)
    stride_on: StrideOn = "3x3"
    # stride of the first stage; Hugging Face's `downsample_in_first_stage` is 2
    first_stride: Annotated[int, AtLeast(1, 2)] = 1
    # put norm and activation before each convolution, and a last norm before the head: v2 (1603.05027)
    preact: bool = False
    # attention at a branch's end: squeeze-and-excitation (1709.01507), efficient channel attention (1910.03151), none
    attention: Attention = "none"
    # share of a block's channels to which squeeze-and-excitation reduces them
    attention_ratio: Annotated[float, Within("(0, 1]")] = 1 / 16
    # low-pass filter where the image shrinks (1904.11486): a binomial blur, an average pool, none
    antialias: Antialias = "none"
    # norm after each convolution: batch norm, or group norm of 32 groups (1803.08494)
    norm: Norm = "batch"
    # bring each filter to mean 0 and variance 1 before it convolves (1903.10520), as BiT does
    weight_standardization: bool = False
    # activation function after each norm
    activation: Activation = "relu"
    # rate at which training drops the last block's branch (1603.09382); it grows from 0 at the first block
    stochastic_depth: Annotated[float, Within("[0, 1)")] = 0.0
    # what is dropped at once: the branch of each sample by itself, or of the whole batch, which saves its compute
    stochastic_depth_mode: DropMode = "row"
    # start the last norm of each branch at 0 (1706.02677); of a pre-activation branch, its last convolution
    zero_init_residual: bool = True
    # largest stride of a feature map; strides beyond it become dilation, for dense prediction
    output_stride: Annotated[int, AtLeast(1)] = 32
    # number of channels of the images
    in_channels: Annotated[int, AtLeast(1, _MOST)] = 3
    # number of classes; with 0 the network gives the pooled features
    num_classes: Annotated[int, AtLeast(0, _MOST)] = 1000
    # rate of dropout before the classifier
    dropout: Annotated[float, Within("[0, 1)")] = 0.0

    def __post_init__(self) -> None:
        check(self)
        for name in ("depths", "widths"):
            ok = 1 <= len(getattr(self, name)) <= _MOST_STAGES
            self._need(ok, name, f"one positive integer per stage, for 1 to {_MOST_STAGES} stages")
        if len(self.depths) != len(self.widths):
            raise ConfigError(f"depths has {len(self.depths)} stages and widths {len(self.widths)}: give both as many")
        self._check_block()
        self._check_together()
        self._check_channels()

    def _check_block(self) -> None:
        if len(self.kinds) != len(self.depths):
            raise ConfigError(
                f"block names {len(self.kinds)} stages but depths has {len(self.depths)}: name one per stage"
            )
        # One spelling for one network, so that equal networks compare equal.
        object.__setattr__(self, "block", self.kinds[0] if len(set(self.kinds)) == 1 else self.kinds)

    def _check_together(self) -> None:
        basic = "basic" in self.kinds
        if basic and (self.groups, self.width_per_group) != (1, 64):
            raise ConfigError(
                f"groups={self.groups} and width_per_group={self.width_per_group} need bottleneck blocks in all "
                "stages: a basic block has no 1x1 around its 3x3 (1611.05431, section 3); leave them at 1 and 64"
            )
        if self.stride_on == "1x1" and "bottleneck" not in self.kinds:
            raise ConfigError("stride_on='1x1' needs a bottleneck block: a basic block has no 1x1; use stride_on='3x3'")
        self._need(self.downsample_kernel in (1, 3), "downsample_kernel", "1 or 3")
        if self.downsample_kernel != 1 and self.downsample != "conv":
            raise ConfigError(
                f"downsample_kernel={self.downsample_kernel} needs downsample='conv': "
                f"downsample={self.downsample!r} has no strided convolution"
            )
        power = self.output_stride > 0 and self.output_stride & (self.output_stride - 1) == 0
        self._need(power, "output_stride", "a power of two")
        if self.output_stride < self.stem_stride:
            raise ConfigError(
                f"output_stride={self.output_stride} is below the stem's own stride {self.stem_stride}, "
                "which is not turned into dilation; raise it, or use stem='conv3' or stem_pool='none'"
            )

    def _check_channels(self) -> None:
        """Channel numbers that cannot be show here, before any tensor exists."""
        weights, inp = 0, self.stem_channels[-1]
        most = max(*self.stem_channels, *(channels for stage in self.stages for channels in stage.widest))
        if most > _MOST:
            raise ConfigError(
                f"these fields give {quoted(most)} channels, at most {_MOST} can be; use smaller widths, stem_width, "
                "width_per_group or groups, or a smaller width factor"
            )
        for stage, depth in zip(self.stages, self.depths, strict=True):
            width = stage.blocks[0].width
            if self.weight_standardization and 1 in (inp, stage.channels, width):
                raise ConfigError("weight_standardization needs filters of two weights or more: use widths above 1")
            weights += depth * stage.channels * max(inp, width)
            inp = stage.channels
        if weights > _MOST_WEIGHTS:
            raise ConfigError(
                f"these depths and widths make more than {_MOST_WEIGHTS:.0e} weights; use smaller ones, or a smaller "
                "width or width_per_group"
            )

    def _need(self, ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{name} is {quoted(getattr(self, name))}; it must be {allowed}")

    # -- what follows from the fields ------------------------------------------------------------------------------

    @property
    def kinds(self) -> tuple[BlockKind, ...]:
        """The block of each stage."""
        return (self.block,) * len(self.depths) if isinstance(self.block, str) else self.block

    @property
    def stem_stride(self) -> int:
        """Stride of stem and stem pool together."""
        return (1 if self.stem == "conv3" else 2) * (1 if self.stem_pool == "none" else 2)

    @cached_property
    def stem_channels(self) -> tuple[int, ...]:
        """Channels out of each convolution of the stem."""
        out = self.scaled(self.stem_width)
        if self.stem in ("conv7", "conv3"):
            return (out,)
        first = 3 * (out // 8) if self.stem == "tiered" else out // 2  # timm's deep_tiered: 24, 32, 64
        if first == 0 or out % 2:
            raise ConfigError(f"stem_width is {self.stem_width}, too small or odd for stem={self.stem!r}; try 32 or 64")
        return (first, out // 2, out)

    @cached_property
    def stages(self) -> tuple[StagePlan, ...]:
        """Channels, strides, dilations and drop rates of every block: the only place where they are worked out."""
        plans = []
        channels, net_stride, dilation = self.stem_channels[-1], self.stem_stride, 1
        index, last = 0, max(sum(self.depths) - 1, 1)
        for number, (kind, depth, base) in enumerate(zip(self.kinds, self.depths, self.widths, strict=True)):
            stride, first_dilation = (self.first_stride if number == 0 else 2), dilation
            if net_stride * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            net_stride *= stride
            out, inner = self.scaled(base) * EXPANSION[kind], self._inner(kind, base)
            first = inner // self.reduce_first
            if first == 0 or first % self.groups:
                raise ConfigError(
                    f"reduce_first={self.reduce_first} leaves {first} channels in stage {number + 1}, which groups="
                    f"{self.groups} do not divide; use a smaller one"
                )
            blocks = []
            for i in range(depth):
                rate = self.stochastic_depth * index / last
                inp, step, before = (channels, stride, first_dilation) if i == 0 else (out, 1, dilation)
                blocks.append(BlockPlan(kind, inp, first, inner, out, step, dilation, before, rate))
                index += 1
            if self.downsample == "pad" and out < channels:
                raise ConfigError(
                    f"downsample='pad' cannot shrink {channels} to {out} channels in stage {number + 1}: it only adds "
                    "zeros; use widths that grow, or downsample='conv'"
                )
            plans.append(StagePlan(tuple(blocks), out, net_stride))
            channels = out
        return tuple(plans)

    def _inner(self, kind: BlockKind, base: int) -> int:
        if kind == "basic":
            return self.scaled(base)
        inner = self.scaled(int(base * self.width_per_group / 64) * self.groups, math.lcm(8, self.groups))
        if inner == 0:
            raise ConfigError(
                f"width_per_group={self.width_per_group} leaves groups of no channel in a stage of width {base}; "
                f"use at least {math.ceil(64 / base)}"
            )
        return inner

    def scaled(self, channels: int, divisor: int = 8) -> int:
        """`channels` times the width factor, to the nearest multiple of `divisor`, never 10 % below (1704.04861)."""
        if self.width == 1.0 or channels == 0:
            return channels
        target = channels * self.width
        rounded = max(divisor, int(target + divisor / 2) // divisor * divisor)
        return rounded if rounded >= 0.9 * target else rounded + divisor

    @property
    def num_features(self) -> int:
        """Channels of the pooled features."""
        return self.stages[-1].channels

    @property
    def depth(self) -> int:
        """Weighted layers as the papers count them: stem, convolutions of the branches, classifier."""
        return 2 + sum(n * CONVS[kind] for kind, n in zip(self.kinds, self.depths, strict=True))

    # -- in and out ------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked as a new one is."""
        return type(self).from_dict(self.to_dict() | changes)

    def to_dict(self) -> dict[str, Any]:
        """Field name to value, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; fields left out take their defaults, unknown ones raise `ConfigError`."""
        refuse_unknown(values, (f.name for f in dataclasses.fields(cls)), f"field of {cls.__name__}")
        return cls(**values)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls.from_dict(parse_json(text))

    def to_toml(self) -> str:
        """One `field = value` line per field."""
        return toml_lines(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of `to_toml`."""
        return cls.from_dict(parse_toml(text))
