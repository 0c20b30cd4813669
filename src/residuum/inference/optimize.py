"""A network made ready for inference alone: folded, in the device's best format and precision."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from residuum.devices import DTYPES, choose_precision
from residuum.errors import ConfigError, DataError, DeviceError, quoted
from residuum.inference.folding import Convolution, Fold, FoldedConv, is_mean, without_nothing
from residuum.inference.onednn import FusedConv, onednn_fuses
from residuum.inference.surgery import copied, move_hooks
from residuum.nn.resnet import ResNet

Compile = Literal["default", "reduce-overhead", "max-autotune"]


class FoldedResNet(nn.Module):
    """What `optimize_for_inference` gives: (N, in_channels, H, W), any float -> (N, num_classes), float32.

    `precision` is that of convolutions and activations, `why` says in a sentence how it was chosen; pooling and the
    classifier compute in float32. It stays in evaluation, on the device and in the precision that it was made for.
    """

    def __init__(self, model: ResNet, fold: Fold, device: torch.device, precision: str, why: str) -> None:
        super().__init__()
        self.config, self.precision, self.why = model.config, precision, why
        self.dtype, self.device = fold.dtype, device
        self.feature_info, self.classes, self.preprocessing = model.feature_info, model.classes, model.preprocessing
        stem, *stages, head = model.parts()
        *first, pool = stem.layers.values()
        self.stem, self.pool = nn.Sequential(*fold.layers(first)), nn.Sequential(*fold.layers([pool]))
        self.in_channels = next((m.in_channels for m in self.stem[:1] if isinstance(m, Convolution)), None)
        self.stages = nn.ModuleList(fold.stage(*stage.layers.values()) for stage in stages)
        layers, average = list(head.layers.values()), head.layers["avgpool"]
        before, after = layers[: layers.index(average)], layers[layers.index(average) + 1 :]
        self.norm = nn.Sequential(*fold.layers(before))
        self.average = None if is_mean(average) else average.float()
        self.fc = nn.Sequential(*without_nothing(after)).float()
        move_hooks(model, self)
        self.training = False

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            x = self.pool(self.stem(self._taken(x)))
            for stage in self.stages:
                x = stage(x)
            x = self.norm(x)
            if self.average is None:
                return self.fc(x.mean((2, 3), dtype=torch.float32))  # type: ignore[no-any-return]
            return self.fc(self.average(x.float().contiguous()).flatten(1))  # type: ignore[no-any-return]

    @torch.no_grad()
    def features(self, x: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """The feature maps of some levels of `feature_info`, all stages where none are named, in float32."""
        wanted = ResNet.check_levels(self, levels)  # type: ignore[arg-type] # which asks the config alone
        parts = [self.stem, *(nn.Sequential(self.pool, s) if i == 0 else s for i, s in enumerate(self.stages))]
        outputs = []
        with torch.autocast(self.device.type, enabled=False):
            x = self._taken(x)
            for level, part in enumerate(parts[: wanted[-1] + 1]):
                x = part(x)
                if level in wanted:
                    outputs.append(x.to(torch.float32, copy=True))  # the next block may write over it
        return outputs

    def _taken(self, x: Tensor) -> Tensor:
        """The images in the network's precision, channels last; raises `DataError` for any other shape."""
        if x.ndim != 4 or self.in_channels not in (None, x.shape[1]):
            channels = "C" if self.in_channels is None else self.in_channels
            raise DataError(f"images are {tuple(x.shape)}; this network takes (N, {channels}, H, W)")
        if x.device != self.device:
            raise DeviceError(f"images are on {x.device}, this network on {self.device}; move the images")
        if self.in_channels is None:  # what comes first may write over them, or hand them on to what does
            return x.to(self.dtype, copy=True, memory_format=torch.channels_last)
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)  # faster in two steps

    def train(self, mode: bool = True) -> Self:
        """Refused with `ConfigError`, unless `mode` is False."""
        if mode:
            raise ConfigError("a network that was optimized for inference cannot train; train the one it was made from")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        raise ConfigError(
            "a network that was optimized for inference keeps its device and precision; "
            "move the one it was made from and optimize that"
        )


def optimize_for_inference(
    model: ResNet,
    *,
    precision: str = "auto",
    compile: bool | str = False,  # noqa: A002
) -> FoldedResNet:
    """A network that infers fast, on the device where `model` is; `model` itself is left as it was.

    Batch norms are folded into convolutions, weight standardization is worked in, tensors are channels-last. On a CPU
    each convolution is one operation with its bias, its activation and the sum, where oneDNN has that. `precision` is
    fp32, bf16, fp16, or auto: bf16 where the device computes it.

    The network is taken as in evaluation. What was put into it keeps its effect: masks and parametrisations are worked
    into the weights, forward hooks and layers of other makes run in their places, in float32; modes of recomputation
    and `torch.compile` are left out, for they change no number.

    `compile` hands the folded network to `torch.compile`: True, or the name of its mode.

    Logits differ by at most 1e-5 of the largest in fp32 and by 3 % in bf16. Raises `ConfigError` for a model that is
    not ours, is wrapped or overrides what ResNet does, and for an unknown precision or mode; `DeviceError` for a
    precision that the device has not, and for a network without weights or on several devices.
    """
    modes = get_args(Compile)
    if not isinstance(compile, bool) and compile not in modes:
        raise ConfigError(f"compile is {quoted(compile)}; it must be True, False or one of {', '.join(modes)}")
    net = folded_network(model, precision, plain=bool(compile))
    if compile is True and net.device.type == "cpu":
        net.compile(options={"freezing": True})  # lays the weights out ahead, as FusedConv does
    elif compile:
        net.compile(mode="default" if compile is True else compile)
    return net


def folded_network(model: ResNet, precision: str, *, plain: bool) -> FoldedResNet:
    """The network folded; `plain` keeps to torch's ordinary operations, for whatever compiles or exports it."""
    with torch.inference_mode(False), torch.no_grad():  # so that it serves outside the block where it is made
        network = copied(model)
        device = next(chain(network.parameters(), network.buffers())).device
        name, why = choose_precision(precision, device)
        dtype = DTYPES[name]
        fused = device.type == "cpu" and not plain and onednn_fuses(dtype)
        return FoldedResNet(network, Fold(device, dtype, FusedConv if fused else FoldedConv), device, name, why)
