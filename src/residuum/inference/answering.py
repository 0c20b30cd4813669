"""A network of any source made ready to answer: from decoded images to logits or features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from residuum.data.preparing import evaluation_transform, normalise
from residuum.devices import pick_device
from residuum.errors import ConfigError, DeviceError, WeightsError, quoted
from residuum.inference.optimize import FoldedResNet, optimize_for_inference
from residuum.inference.stream import lanes_of_this_machine
from residuum.inference.surgery import copied, hooked
from residuum.nn.resnet import ResNet
from residuum.preprocessing import Preprocessing
from residuum.runtimes.exported import Exported, Runtime, is_exported, opened
from residuum.weights.converting import unsaid
from residuum.weights.files import load

BATCH = 8  # images that an engine is made ready for where nothing is asked for


@dataclass(frozen=True, eq=False)
class Answering:
    """What answers: images as `prepare` leaves them -> float32 (N, outputs), logits or features.

    `prepare` takes decoded images, uint8 (..., C, H, W). What it gives may be of several sizes where the network scales
    by itself. `lanes` says how many calls may be made at once, each by a thread with its share of the processor.
    """

    what: str  # how messages name it
    classes: tuple[str, ...]  # none where the weights do not name them
    preprocessing: Preprocessing
    several_classes: bool
    outputs: int
    runs_in: str  # its precision, and the runtime where that is not torch
    lanes: int
    prepare: Callable[[Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]  # of images of one size

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        with torch.inference_mode():
            if isinstance(images, Tensor):
                return self.answer(images)
            sizes: dict[torch.Size, list[int]] = {}
            for place, image in enumerate(images):
                sizes.setdefault(image.shape, []).append(place)
            answers = [self.answer(torch.stack([images[place] for place in places])) for places in sizes.values()]
            if len(answers) == 1:
                return answers[0]
            order = torch.tensor([place for places in sizes.values() for place in places])
            return torch.cat(answers)[order.argsort()]


def answering(
    source: str | Path | ResNet,
    *,
    device: str,
    precision: str,
    runtime: Runtime = "auto",
    engine: str = "eager",
    batch_size: int | None = None,
    features: bool = False,
    names_classes: bool = True,
    image_size: tuple[int, int] | None = None,
) -> Answering:
    """The network of a source that `residuum.load` takes, or one in memory, optimized for inference; or a file that
    `residuum.export.export` wrote, run by `runtime`.

    `engine` is that of `optimize_for_inference`, made ready for batches of `batch_size`. `features` leaves the
    classifier out: what answers gives pooled features. `image_size` is the preprocessing's where
    left out. Raises `WeightsError` for weights that cannot be read or do not say their preprocessing, or with
    `names_classes` their classes; `ExportError` for an exported file that cannot be run; `DeviceError`; and
    `ConfigError` for a precision that there is not and for what an exported file cannot do.
    """
    if not isinstance(source, ResNet) and is_exported(source):
        if engine != "eager":
            raise ConfigError(f"an engine is for networks, and {quoted(str(source))} has its own runtime; leave it out")
        return _exported(source, device, precision, runtime, features, names_classes, image_size)
    what = "the network" if isinstance(source, ResNet) else quoted(str(source))
    if runtime not in ("auto", "torch"):
        raise ConfigError(f"runtime {quoted(runtime)} runs exported files, and {what} is none; leave it out")
    model = source if isinstance(source, ResNet) else loaded(source).to(pick_device(device))
    unnamed = model.classes is None and names_classes and not features
    if model.preprocessing is None or unnamed:
        raise unsaid(source, *["classes"] * unnamed, *["preprocessing"] * (model.preprocessing is None))
    preprocessing = model.preprocessing if image_size is None else replace(model.preprocessing, image_size=image_size)
    if features:
        model = copied(model)
        model.fc = nn.Identity()
    shapes = None
    if engine != "eager":  # made ready before the first image, not while it waits
        size = (preprocessing.channels, *preprocessing.image_size)
        shapes = [(batch_size or BATCH, *size)]
    fast = optimize_for_inference(model, engine=engine, precision=precision, shapes=shapes)

    def answer(pixels: Tensor) -> Tensor:
        found: Tensor = fast(normalise(pixels.to(fast.device), preprocessing))
        return found

    return Answering(
        what, model.classes or (), preprocessing, model.several_classes, model.config.num_classes, fast.precision,
        _lanes(fast) if engine == "eager" else 1, evaluation_transform(preprocessing), answer,
    )  # fmt: skip


def loaded(source: str | Path) -> ResNet:
    """What `residuum.load` gives, on the CPU whatever the caller's default is: the meta device holds no weights."""
    with torch.device("cpu"):
        return load(source)


def _lanes(net: FoldedResNet) -> int:
    """One where an accelerator or something of the user's own computes, which may not know of several threads."""
    known = all(type(module).__module__.startswith(("torch.nn.", "residuum.")) for module in net.modules())
    plain = known and not any(hooked(module) for module in net.modules())
    return lanes_of_this_machine() if net.device.type == "cpu" and plain else 1


def _exported(
    source: str | Path,
    device: str,
    precision: str,
    runtime: Runtime,
    features: bool,
    names_classes: bool,
    image_size: tuple[int, int] | None,
) -> Answering:
    what = quoted(str(source))
    if features:
        raise ConfigError(f"{what} is an exported file, which gives logits alone; take the network that it was made of")
    if precision != "auto" or image_size is not None:
        fixed = "precision" if precision != "auto" else "image size"
        raise ConfigError(f"the {fixed} of {what} was fixed when it was exported; leave it out")
    if device not in ("auto", "cpu"):
        raise DeviceError(f"{what} is an exported file, which is run on the CPU; leave out the device")
    lanes = lanes_of_this_machine()
    # Runtimes of others share their threads out by themselves; that of ONNX computes in the thread that calls it.
    onnx = Path(source).suffix == ".onnx" and runtime in ("auto", "onnxruntime")
    threads = max(1, torch.get_num_threads() // lanes) if onnx else None
    exported = opened(source, runtime=runtime, threads=threads)
    preprocessing = exported.preprocessing
    if preprocessing is None or (exported.classes is None and names_classes):
        lacking = "preprocessing" if preprocessing is None else "classes"
        raise WeightsError(f"{what} was exported without its {lacking}; export it again from weights that say them")

    def answer(pixels: Tensor) -> Tensor:
        return exported(pixels.permute(0, 2, 3, 1))

    return Answering(
        what, exported.classes or (), preprocessing, exported.several_classes, exported.config["num_classes"],
        _runs_in(exported), lanes if onnx or exported.runtime == "torch" else 1,
        _as_it_is if exported.takes == "image" else evaluation_transform(preprocessing), answer,
    )  # fmt: skip


def _runs_in(exported: Exported) -> str:
    name = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[exported.runtime]
    return f"{getattr(exported.run, 'precision', 'fp32')} by {name}"


def _as_it_is(image: Tensor) -> Tensor:
    return image
