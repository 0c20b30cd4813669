"""A network of any source made ready to answer: from images as preprocessing leaves them to logits or features."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from residuum.data.preparing import normalise
from residuum.devices import pick_device
from residuum.errors import WeightsError, quoted
from residuum.inference.optimize import FoldedResNet, optimize_for_inference
from residuum.inference.stream import lanes_of_this_machine
from residuum.inference.surgery import copied, hooked
from residuum.nn.resnet import ResNet
from residuum.preprocessing import Preprocessing
from residuum.weights.files import load


@dataclass(frozen=True, eq=False)
class Answering:
    """What answers: uint8 (N, C, H, W), as `preprocessing` leaves images, -> float32 (N, classes) or (N, features).

    `lanes` says how many calls may be made at once, each by a thread with its share of the processor.
    """

    what: str  # how messages name it
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    several_classes: bool
    precision: str
    lanes: int
    answer: Callable[[Tensor], Tensor]

    def __call__(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.answer(pixels)


def answering(source: str | Path | ResNet, *, device: str, precision: str, features: bool = False) -> Answering:
    """The network of a source that `residuum.load` takes, or one in memory, optimized for inference.

    `features` leaves the classifier out: what answers gives pooled features. Raises `WeightsError` for weights that
    cannot be read or do not say their classes and preprocessing, `DeviceError`, and `ConfigError` for a precision that
    there is not.
    """
    model = source if isinstance(source, ResNet) else loaded(source).to(pick_device(device))
    what = "the network" if isinstance(source, ResNet) else quoted(str(source))
    if model.preprocessing is None or (model.classes is None and not features):
        says = "its preprocessing" if features else "its classes and preprocessing"
        raise WeightsError(
            f"{what} does not say {says}; use weights that 'residuum train' saved or a hub's, or set them: "
            f"model.classes, model.preprocessing"
        )
    preprocessing = model.preprocessing
    if features:
        model = copied(model)
        model.fc = nn.Identity()
    fast = optimize_for_inference(model, precision=precision)

    def answer(pixels: Tensor) -> Tensor:
        logits: Tensor = fast(normalise(pixels.to(fast.device), preprocessing))
        return logits

    return Answering(
        what, model.classes or (), preprocessing, model.several_classes, fast.precision, _lanes(fast), answer
    )


def loaded(source: str | Path) -> ResNet:
    """What `residuum.load` gives, on the CPU whatever the caller's default is: the meta device holds no weights."""
    with torch.device("cpu"):
        return load(source)


def _lanes(net: FoldedResNet) -> int:
    """One where an accelerator or something of the user's own computes, which may not know of several threads."""
    known = all(type(module).__module__.startswith(("torch.nn.", "residuum.")) for module in net.modules())
    plain = known and not any(hooked(module) for module in net.modules())
    return lanes_of_this_machine() if net.device.type == "cpu" and plain else 1
