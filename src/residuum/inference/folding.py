"""A network made ready for inference alone: norms folded into convolutions, the device's best format and precision."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self, TypeGuard, cast, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from residuum.devices import DTYPES, choose_precision, slow_in_place
from residuum.errors import ConfigError, DataError, DeviceError
from residuum.memory.checkpointing import check_ours
from residuum.memory.in_place import choose_in_place
from residuum.nn.blocks import Block
from residuum.nn.freezing import FrozenBatchNorm
from residuum.nn.layers import EfficientChannelAttention, SqueezeExcite, StandardizedConv2d
from residuum.nn.resnet import FeatureInfo, ResNet
from residuum.nn.stochastic_depth import StochasticDepth

Compile = Literal["default", "reduce-overhead", "max-autotune"]
# What oneDNN can do to a convolution's output before it writes it: its name, numbers and variant for an activation.
_EPILOGUES: dict[type[nn.Module], Callable[[Any], tuple[str, list[float], str]]] = {
    nn.ReLU: lambda act: ("relu", [], ""),
    nn.LeakyReLU: lambda act: ("leaky_relu", [act.negative_slope], ""),
    nn.SiLU: lambda act: ("swish", [], ""),
    nn.GELU: lambda act: ("gelu", [], act.approximate),
    nn.Hardswish: lambda act: ("hardswish", [], ""),
}
SHAPES_KEPT = 2  # of inputs for which weights stay laid out: a batch, and what is left over at the end
_ACTIVATIONS = (*_EPILOGUES, nn.ELU, nn.Mish)
_NOTHING = (nn.Identity, nn.Dropout, StochasticDepth)  # in evaluation


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum, written over x where that is no slower."""
    return x + y if slow_in_place(x.device, x.dtype) else x.add_(y)


class FoldedConv(nn.Module):
    """act(conv(x) + bias), or act(conv(x) + bias + other) where `other` is given, which may be overwritten."""

    def __init__(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.end_in(act)

    def end_in(self, act: nn.Module | None) -> None:
        """Set the activation."""
        self.act = act

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = x if other is None else _sum(x, other)
        return x if self.act is None else self.act(x)


class FusedConv(nn.Module):
    """`FoldedConv` as one operation of oneDNN, its weights laid out as the machine's kernel for the input takes them.

    That kernel, and so the layout, depends on the input's whole shape: in another layout the weights would be laid out
    anew in each pass, which was seen to take up to 15 times as long as the convolution.
    """

    def __init__(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__()
        padding, stride, dilation = (list(n) for n in (conv.padding, conv.stride, conv.dilation))
        self.weight, self.bias, self.geometry = weight, bias, (padding, stride, dilation, conv.groups)
        self.laid_out: dict[torch.Size, Tensor] = {}
        self.end_in(act)

    def __getstate__(self) -> Any:
        raise ConfigError("a network laid out for this machine is not saved or copied; take the one it was made from")

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.__getstate__()

    def end_in(self, act: nn.Module | None) -> None:
        """Set the activation."""
        self.act = act
        fused = _EPILOGUES.get(type(act))  # type: ignore[arg-type]
        self.after = None if fused else act
        self.epilogue = ("none", [], "") if fused is None else fused(act)
        # After a sum oneDNN is asked for the one activation that torch lets through there.
        self.sums_to_relu = type(act) is nn.ReLU

    def _weight(self, shape: torch.Size) -> Tensor:
        weight = self.laid_out.get(shape)
        if weight is None:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, shape)
            self.laid_out = dict([*self.laid_out.items(), (shape, weight)][-SHAPES_KEPT:])
        return weight

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        weight = self._weight(x.shape)
        if other is None:
            x = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, *self.epilogue)
            return x if self.after is None else self.after(x)
        relu = "relu" if self.sums_to_relu else None
        binary = torch.ops.mkldnn._convolution_pointwise_.binary
        x = binary(other, x, weight, self.bias, *self.geometry, "add", 1.0, relu, [], "")
        return x if relu or self.act is None else self.act(x)


class Sum(nn.Module):
    """act(branch + shortcut), where the branch does not end in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.end_in(None)

    def end_in(self, act: nn.Module | None) -> None:
        """Set the activation."""
        self.act = act

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        x = _sum(branch, shortcut)
        return x if self.act is None else self.act(x)


class GatedSum(Sum):
    """act(branch * gate + shortcut), the gate being attention's: one pass over the tensors, written over `shortcut`."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention: Any = copy.deepcopy(attention).float().requires_grad_(False)
        for name, layer in attention.named_children():
            if isinstance(layer, nn.Conv2d):
                setattr(self.attention, name, _linear(layer))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        # Channels last on a CPU, this is a fifth of the time that a mean takes.
        pooled = F.avg_pool2d(branch, branch.shape[2:]) if branch.is_cpu else branch.mean((2, 3), keepdim=True)
        gate = self.attention.gate(pooled.flatten(1).float()).to(branch.dtype)
        x = shortcut.addcmul_(branch, gate[:, :, None, None])
        return x if self.act is None else self.act(x)


class FoldedBlock(nn.Module):
    """A residual block for inference; overwrites its input where the shortcut is the identity."""

    def __init__(self, block: Block, fold: "Fold") -> None:
        super().__init__()
        layers = [getattr(block, name) for name in block.branch_layers()]
        gated = block.se if isinstance(block.se, SqueezeExcite | EfficientChannelAttention) else None
        branch = fold.layers(layer for layer in layers if layer is not gated)  # a None among them is nothing
        self.enter = _row(fold.layers([block.bn1, block.act1] if block.preact else []))
        self.shortcut = _row(fold.layers([block.downsample]))
        self.end: FoldedConv | FusedConv | Sum = Sum()
        if gated is not None:
            self.end = GatedSum(gated)
        elif isinstance(branch[-1], FoldedConv | FusedConv):
            self.end = branch.pop()  # type: ignore[assignment]
        self.branch = _row(branch)
        self.end.end_in(None if block.preact else copy.deepcopy(getattr(block, f"act{block.length}")))

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.enter is None else self.enter(x)
        x = x if self.shortcut is None else self.shortcut(h)
        h = h if self.branch is None else self.branch(h)
        return self.end(h, x)  # type: ignore[no-any-return]


class FoldedResNet(nn.Module):
    """What `optimize_for_inference` gives: (N, in_channels, H, W), any float -> (N, num_classes), float32.

    `precision` is that of convolutions and activations, `why` says in a sentence how it was chosen; pooling and the
    classifier compute in float32. It stays in evaluation, on the device and in the precision that it was made for.
    """

    def __init__(self, model: ResNet, fold: "Fold", precision: str, why: str) -> None:
        super().__init__()
        self.config, self.precision, self.why = model.config, precision, why
        self.dtype, self.device = fold.dtype, fold.device
        self.stem = nn.Sequential(*fold.layers([model.conv1, model.bn1, model.act1, model.maxpool]))
        self.stages = nn.ModuleList(
            nn.Sequential(*(FoldedBlock(cast(Block, b), fold) for b in s)) for s in model.stages
        )
        self.norm = nn.Sequential(*fold.layers([model.norm, model.act]))
        self.fc = copy.deepcopy(model.fc).float().requires_grad_(False)
        choose_in_place(self, self.device, self.dtype)
        super().train(False)

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Of each stage, as the network's own."""
        return [FeatureInfo(f"layer{i}", s.channels, s.stride) for i, s in enumerate(self.config.stages, 1)]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            x = self.stem(self._taken(x))
            for stage in self.stages:
                x = stage(x)
            return self.fc(self.norm(x).mean((2, 3), dtype=torch.float32))  # type: ignore[no-any-return]

    @torch.no_grad()
    def features(self, x: Tensor) -> list[Tensor]:
        """The output of each stage in float32, as `feature_info` says."""
        with torch.autocast(self.device.type, enabled=False):
            x, outputs = self.stem(self._taken(x)), []
            for stage in self.stages:
                x = stage(x)
                outputs.append(x.to(torch.float32, copy=True))  # the next block may write over it
            return outputs

    def _taken(self, x: Tensor) -> Tensor:
        """The images in the network's precision, channels last; raises `DataError` for any other shape."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise DataError(f"images are {tuple(x.shape)}; this network takes (N, {self.config.in_channels}, H, W)")
        if x.device != self.device:
            raise DeviceError(f"images are on {x.device}, this network on {self.device}; move the images")
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)  # faster in two steps

    def train(self, mode: bool = True) -> Self:
        """Refused with `ConfigError`, unless `mode` is False."""
        if mode:
            raise ConfigError("a network that was optimized for inference cannot train; train the one it was made from")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        raise ConfigError(
            "a network that was optimized for inference keeps its device and precision; "
            "move the one it was made from and optimize that"
        )


class Fold:
    """How layers are turned into those for inference, for one device and precision."""

    def __init__(self, device: torch.device, dtype: torch.dtype, fused: bool) -> None:
        self.device, self.dtype = device, dtype
        self.kind = FusedConv if fused else FoldedConv

    def layers(self, given: Iterable[nn.Module | None]) -> list[nn.Module]:
        """Copies of layers in a row, each convolution in one with the norm and the activation that follow it."""
        row, todo = [], list(_flat(given))[::-1]
        while todo:
            layer = todo.pop()
            if not _is_plain(layer):
                row.append(self._copy(layer))
                continue
            norm, act = None, None
            if todo and _is_fixed(follows := todo[-1]):
                norm = follows
                todo.pop()
            if todo and type(todo[-1]) in _ACTIVATIONS:
                act = copy.deepcopy(todo.pop())
            row.append(self._conv(layer, norm, act))
        return row

    def _conv(self, conv: nn.Conv2d, norm: _BatchNorm | FrozenBatchNorm | None, act: nn.Module | None) -> nn.Module:
        weight, bias = folded(conv, norm)
        weight = weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.kind(weight, bias.to(self.dtype), conv, act)

    def _copy(self, layer: nn.Module) -> nn.Module:
        layer = copy.deepcopy(layer).requires_grad_(False)
        # Batch norm takes its statistics in float32 whatever its input is.
        return layer if isinstance(layer, _BatchNorm | FrozenBatchNorm) else layer.to(self.dtype)


def _flat(layers: Iterable[nn.Module | None]) -> Iterable[nn.Module]:
    for layer in layers:
        if type(layer) is nn.Sequential:
            yield from _flat(layer)
        elif layer is not None and not isinstance(layer, _NOTHING):
            yield layer


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution for tensors (N, C)."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1).float(), requires_grad=False)
    linear.register_parameter(
        "bias", None if conv.bias is None else nn.Parameter(conv.bias.detach().float(), requires_grad=False)
    )
    return linear


def _row(layers: list[nn.Module]) -> nn.Module | None:
    return None if not layers else layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _is_fixed(norm: nn.Module) -> TypeGuard[_BatchNorm | FrozenBatchNorm]:
    """Whether a layer is a batch norm that evaluation makes a scale and a shift."""
    return isinstance(norm, _BatchNorm | FrozenBatchNorm) and norm.running_mean is not None


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution as the blocks make it, not one that somebody put in its place."""
    return type(layer) in (nn.Conv2d, StandardizedConv2d) and layer.padding_mode == "zeros"


def folded(conv: nn.Conv2d, norm: _BatchNorm | FrozenBatchNorm | None) -> tuple[Tensor, Tensor]:
    """Weight and bias in float32 of the plain convolution that does what conv, then norm in evaluation, do."""
    with torch.no_grad():
        weight = conv.filters() if isinstance(conv, StandardizedConv2d) else conv.weight
        weight = weight.double()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.double()
            weight, bias = weight * scale[:, None, None, None], (bias - norm.running_mean.double()) * scale
            bias = bias if norm.bias is None else bias + norm.bias.double()
        return weight.float(), bias.float()


@functools.cache
def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether torch on this machine runs a convolution and what follows it as one operation, and rightly.

    The operators are those of torch's own compiler and may change, so each is tried on a small layer first.
    """
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, device="meta")
    x, other, weight = (
        torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((2, 16, 5, 7), (2, 16, 5, 7), (16, 16, 3, 3))
    )
    bias = other[0, :, 0, 0].contiguous()
    plain = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
    try:
        for act in (kind() for kind in _EPILOGUES):
            fused = FusedConv(weight, bias, conv, act)
            for got, expected in ((fused(x), plain), (fused(x, other.clone()), plain + other.float())):
                if not torch.allclose(got.float(), act(expected), rtol=0.02, atol=0.2):  # bf16's, for values near 10
                    return False
    except (RuntimeError, AttributeError, TypeError, ValueError):
        return False
    return True


@overload
def optimize_for_inference(
    model: ResNet,
    *,
    precision: str = "auto",
    compile: bool | str = False,
    export: None = None,
) -> FoldedResNet: ...


@overload
def optimize_for_inference(
    model: ResNet, *, precision: str = "auto", export: tuple[int, int]
) -> torch.export.ExportedProgram: ...


def optimize_for_inference(
    model: ResNet,
    *,
    precision: str = "auto",
    compile: bool | str = False,  # noqa: A002
    export: tuple[int, int] | None = None,
) -> FoldedResNet | torch.export.ExportedProgram:
    """A network that infers fast, on the device where `model` is; `model` itself is left as it was.

    Batch norms are folded into convolutions, weight standardization is worked in, tensors are channels-last. On a CPU
    each convolution is one operation with its bias, its activation and the sum, where oneDNN has that. `precision` is
    fp32, bf16, fp16, or auto: bf16 where the device computes it.

    `compile` hands the folded network to `torch.compile` instead: True, or the name of its mode. `export` gives, in
    place of a module, a `torch.export` program for images of that height and width and batches of any size.

    Logits differ by at most 1e-5 of the largest in fp32 and by 3 % in bf16. Raises `ConfigError` for a model that is
    not ours and for an unknown precision or mode, `DeviceError` for a precision that the device has not.
    """
    check_ours(model)
    modes = get_args(Compile)
    if not isinstance(compile, bool) and compile not in modes:
        raise ConfigError(f"compile is {compile!r}; it must be True, False or one of {', '.join(modes)}")
    if compile and export is not None:
        raise ConfigError("compile and export are both given; an exported program is compiled by whoever loads it")
    device = next(model.parameters()).device
    if device.type == "meta":
        raise DeviceError("the network is on the meta device and has no weights; load them first")
    name, why = choose_precision(precision, device)
    dtype = DTYPES[name]
    fused = device.type == "cpu" and not compile and export is None and onednn_fuses(dtype)
    net = FoldedResNet(model, Fold(device, dtype, fused), name, why)
    if export is not None:
        return _exported(net, export)
    if compile is True and device.type == "cpu":
        net.compile(options={"freezing": True})  # lays the weights out ahead, as FusedConv does
    elif compile:
        net.compile(mode="default" if compile is True else compile)
    return net


def _exported(net: FoldedResNet, size: tuple[int, int]) -> torch.export.ExportedProgram:
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"export is {size!r}; it must be the height and width of the images, such as (224, 224)")
    images = torch.zeros(2, net.config.in_channels, *size, device=net.device)  # a batch of 1 would become fixed
    with torch.no_grad():
        return torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
