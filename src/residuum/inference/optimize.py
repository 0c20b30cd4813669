"""A network made ready for inference alone: folded, in the device's best format and precision, run by an engine."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from residuum.devices import DTYPES, choose_precision
from residuum.errors import ConfigError, DataError, DeviceError, nearest, quoted
from residuum.extras import need
from residuum.inference.choice import Runs, Setting
from residuum.inference.engines import (
    EXTRAS,
    LIBRARIES,
    Engine,
    Shape,
    candidates,
    check_shapes,
    refuse_engine,
    why_eager_alone,
)
from residuum.inference.folding import Convolution, Fold, FoldedConv, is_mean, without_nothing
from residuum.inference.onednn import FusedConv, onednn_fuses
from residuum.inference.surgery import copied, move_hooks
from residuum.nn.resnet import ResNet


class FoldedResNet(nn.Module):
    """What `optimize_for_inference` gives: (N, in_channels, H, W), any float -> (N, num_classes), float32.

    `precision` is that of convolutions and activations, `why` says in a sentence how it was chosen; pooling and the
    classifier compute in float32. `engine` is what computes, here torch's eager mode. It stays in evaluation, on the
    device and in the precision that it was made for.
    """

    engine = "eager"

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
            return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """From the last stage's output to the logits."""
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
        self._check(x)
        if self.in_channels is None:  # what comes first may write over them, or hand them on to what does
            return x.to(self.dtype, copy=True, memory_format=torch.channels_last)
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)  # faster in two steps

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or self.in_channels not in (None, x.shape[1]):
            channels = "C" if self.in_channels is None else self.in_channels
            raise DataError(f"images are {tuple(x.shape)}; this network takes (N, {channels}, H, W)")
        if x.device != self.device:
            raise DeviceError(f"images are on {x.device}, this network on {self.device}; move the images")

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


class EngineResNet(FoldedResNet):
    """A `FoldedResNet` whose logits another engine computes; feature maps are those of eager mode.

    `engine`, `precision` and `why` say what runs once the first batch did, or from the start for shapes that were
    named; of several batches what they say is of the first. A batch of another size uses what was made for the nearest;
    images of another size take as long as the first batch did, and the last few sizes are kept.
    """

    def start(self, runs: Runs, engine: str, shapes: Sequence[Shape]) -> Self:
        """Take the engines, and prepare them for shapes that are known."""
        self.engine, self._runs, self._told = engine, runs, False
        for shape in shapes:
            runs.prepare(shape)
            self._tell(shape)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if x.is_inference():  # compiled code is compiled anew for those
            with torch.inference_mode(False):
                x = x.clone()
        casts = torch.is_autocast_enabled(self.device.type)  # asked first: a block of it takes as long as many a layer
        plain = torch.autocast(self.device.type, enabled=False) if casts else nullcontext()
        with torch.inference_mode(False), plain:
            x = x.detach().to(torch.float32).contiguous()
            logits = self._runs(x)
        if not self._told:
            self._tell(tuple(x.shape))
        return logits.float()

    def _tell(self, shape: Shape) -> None:
        """Set what the attributes say."""
        found = self._runs.found.get(shape)
        if not self._told:
            self.engine, self.precision = self._runs.precision(shape)
        self.why = "; ".join(filter(None, (self.why, found)))
        self._told = True

    def __getstate__(self) -> Any:
        raise ConfigError("a network made for an engine is not saved or copied; take the one it was made from")

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.__getstate__()


def optimize_for_inference(
    model: ResNet,
    *,
    engine: str = "eager",
    precision: str = "auto",
    shapes: Sequence[Shape] | None = None,
    package: str | Path | None = None,
) -> FoldedResNet:
    """A network that infers fast, on the device where `model` is; `model` itself is left as it was.

    Batch norms are folded into convolutions, weight standardization is worked in, tensors are channels-last. On a CPU
    each convolution is one operation with its bias, its activation and the sum, where oneDNN has that. `precision` is
    fp32, bf16, fp16, or auto: bf16 where the device computes it.

    The network is taken as in evaluation. What was put into it keeps its effect: masks and parametrisations are worked
    into the weights, forward hooks and layers of other makes run in their places, in float32; modes of recomputation
    and `torch.compile` are left out, for they change no number.

    `engine` is what computes:

    - eager: torch, at once and for images of any size.
    - inductor: `torch.compile`, with frozen weights on a CPU. It compiles for a minute, for each size of image and each
      batch that is larger than those before; shorter ones are filled up.
    - aoti: the same compiled ahead, on a CPU, into the file `package`, which is read where it is there: it fits this
      kind of processor and this version of torch. Without a name the file is temporary.
    - onnxruntime, openvino: these runtimes, on a CPU, with as many threads as torch has now. OpenVINO computes in bf16
      as torch does, ONNX Runtime in fp32.
    - auto: the fastest of eager and the runtimes that are installed, or of eager and inductor where none is, as a short
      measurement on the shape of the first batch finds. It is remembered in the user's cache folder for this network,
      shape, precision, processor, number of threads and versions.

    `shapes` are those of batches, such as `[(8, 3, 224, 224)]`, for which engines are prepared and measured at once;
    without them the first batch waits for that. Each engine is compared with the network as it was given, in fp32, on
    made-up images in several sizes of batch, in each process and for each size of image; one that fails is refused, or
    left out by auto. A network with forward hooks, or with layers in training, runs in eager mode alone: auto takes
    that, other engines refuse.

    Logits differ by at most 1e-5 of the largest in fp32 and by 3 % in bf16. Raises `ConfigError` for a model that is
    not ours, is wrapped or overrides what ResNet does, for an unknown precision or engine, and for what the engine
    cannot run; `DeviceError` for a precision or device that the device or engine has not, and for a network without
    weights or on several devices; `MissingExtraError`; `ExportError`, also from a batch, for a network that the engine
    cannot take or answers otherwise.
    """
    if engine not in get_args(Engine):
        known = get_args(Engine)
        raise ConfigError(
            f"engine is {quoted(engine)}; it must be one of {', '.join(known)}{nearest(str(engine), known)}"
        )
    if package is not None and engine != "aoti":
        raise ConfigError(f"package is for engine 'aoti', and engine is {engine!r}; leave it out")
    if package is not None and Path(package).suffix != ".pt2":
        raise ConfigError(f"{quoted(str(package))} does not end in .pt2, as a package of aoti does; name the file so")
    net = folded_network(model, precision, plain=False, make=FoldedResNet if engine == "eager" else EngineResNet)
    wanted = () if shapes is None else check_shapes(shapes, net.in_channels or net.config.in_channels)
    if not isinstance(net, EngineResNet):
        return net
    with torch.inference_mode(False), torch.no_grad():
        network = copied(model).float()
    engines = candidates(net.device, precision) if engine == "auto" else (engine,)
    alone = why_eager_alone(network) or ("no other engine is installed" if engines == ("eager",) else None)
    if alone is not None:
        if engine != "auto":
            raise ConfigError(f"{alone}; engine is {engine!r}")
        eager = folded_network(model, precision, plain=False)
        eager.why += f"; {alone}"
        return eager
    refuse_engine(engine, net.device, precision)
    for library in LIBRARIES.get(engine, ()):
        need(library, extra=EXTRAS[engine])
    setting = Setting(
        engines,
        asked=precision,
        precision=net.precision,
        device=net.device,
        threads=torch.get_num_threads(),
        fold=lambda name: folded_network(network, name, plain=True),
        package=None if package is None else Path(package),
    )
    return net.start(Runs(setting, network, partial(FoldedResNet.forward, net)), engine, wanted)


def folded_network(
    model: ResNet, precision: str, *, plain: bool, make: type[FoldedResNet] = FoldedResNet
) -> FoldedResNet:
    """The network folded; `plain` keeps to torch's ordinary operations, for whatever compiles or exports it."""
    with torch.inference_mode(False), torch.no_grad():  # so that it serves outside the block where it is made
        network = copied(model)
        device = next(chain(network.parameters(), network.buffers())).device
        name, why = choose_precision(precision, device)
        dtype = DTYPES[name]
        fused = device.type == "cpu" and not plain and onednn_fuses(dtype)
        return make(network, Fold(device, dtype, FusedConv if fused else FoldedConv), device, name, why)
