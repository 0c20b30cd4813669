"""A convolution and what follows it as one operation of oneDNN, on CPUs. Uses operators of torch's own compiler."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.errors import ConfigError
from residuum.inference.folding import Convolution

# What oneDNN can do to a convolution's output before it writes it: its name, numbers and variant for an activation.
_EPILOGUES: dict[type[nn.Module], Callable[[Any], tuple[str, list[float], str]]] = {
    nn.ReLU: lambda act: ("relu", [], ""),
    nn.LeakyReLU: lambda act: ("leaky_relu", [act.negative_slope], ""),
    nn.SiLU: lambda act: ("swish", [], ""),
    nn.GELU: lambda act: ("gelu", [], act.approximate),
    nn.Hardswish: lambda act: ("hardswish", [], ""),
}
REGISTER = 8  # numbers of fp32 that AVX2 computes at once
SHAPES_KEPT = 2  # of inputs for which weights stay laid out: a batch, and what is left over at the end


class FusedConv(Convolution):
    """A `Convolution` that is one operation, its weights laid out as the machine's kernel for the input takes them.

    That kernel, and so the layout, depends on the input's whole shape: in another layout the weights would be laid out
    anew in each pass, which was seen to take up to 15 times as long as the convolution.
    """

    def __init__(self, weight: Tensor, bias: Tensor, conv: nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__(weight, bias, conv, act)
        padding, stride, dilation = (list(n) for n in (conv.padding, conv.stride, conv.dilation))
        weight, groups = wide_enough(weight, conv.groups)
        self.weight, self.bias, self.geometry = weight, bias, (padding, stride, dilation, groups)
        self.laid_out: dict[torch.Size, Tensor] = {}
        self.end_in(act)

    def __getstate__(self) -> Any:
        raise ConfigError("a network laid out for this machine is not saved or copied; take the one it was made from")

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.__getstate__()

    def end_in(self, act: nn.Module | None) -> None:
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
        # A layer of a user's may have left it in another format, for which oneDNN has no sum in bf16.
        other = other.contiguous(memory_format=torch.channels_last)
        relu = "relu" if self.sums_to_relu else None
        binary = torch.ops.mkldnn._convolution_pointwise_.binary
        x = binary(other, x, weight, self.bias, *self.geometry, "add", 1.0, relu, [], "")
        return x if relu or self.act is None else self.act(x)


def wide_enough(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """Weights and number of groups of the same convolution in fewer groups, where narrow ones leave a register empty.

    With AVX2 a group of 4 channels in fp32 fills half of one. Two such groups as one, with zeros where they do not
    meet, took 0.67 of the time for resnext50_32x4d's first stage; wider ones took longer.
    """
    out, narrow = weight.shape[0] // groups, weight.shape[1]
    half_full = out == narrow == REGISTER // 2 and weight.dtype == torch.float32 and groups % 2 == 0
    if not half_full or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return weight, groups
    pairs = weight.reshape(
        -1, 2, out, *weight.shape[1:]
    )  # (pair, which of the two, its outputs, its inputs, height, width)
    wide = torch.zeros(*pairs.shape[:3], 2 * narrow, *weight.shape[2:], dtype=weight.dtype, device=weight.device)
    wide[:, 0, :, :narrow], wide[:, 1, :, narrow:] = pairs[:, 0], pairs[:, 1]
    return wide.flatten(0, 2).contiguous(memory_format=torch.channels_last), groups // 2


@functools.cache
def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether torch on this machine runs a convolution and what follows it as one operation, and rightly.

    The operators are those of torch's own compiler and may change, so each is tried on a small layer first.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, device="meta")
    x, other, weight = (
        torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for shape in ((2, 16, 5, 7), (2, 16, 5, 7), (16, 16, 3, 3))
    )
    bias = other[0, :, 0, 0].contiguous()
    try:
        with torch.autocast("cpu", enabled=False):
            plain = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
        for act in (kind() for kind in _EPILOGUES):
            fused = FusedConv(weight, bias, conv, act)
            for got, expected in ((fused(x), plain), (fused(x, other.clone()), plain + other.float())):
                wanted = act(expected.clone())  # which may write over what it is given
                if not torch.allclose(got.float(), wanted, rtol=0.02, atol=0.2):  # bf16's, for values near 10
                    return False
    except (RuntimeError, AttributeError, TypeError, ValueError):
        return False
    return True
