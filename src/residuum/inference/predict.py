"""Prediction: classes of image files by the weights of a run."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from residuum.errors import DataError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from residuum.preprocessing import Preprocessing

BATCH = 32  # images that go through the network together


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, each with its probability."""

    path: str
    classes: tuple[tuple[str, float], ...]


def predict(source: str | Path, images: Sequence[str], *, top: int = 3, device: str = "auto") -> list[Prediction]:
    """Classify image files with a run's folder or weights file, as fast as `optimize_for_inference` makes its network.

    Raises `WeightsError` for weights that cannot be read or were not saved by training, `DataError` for an image.
    """
    import torch

    from residuum.data.sources import evaluation_transform, normalise, read_image
    from residuum.devices import pick_device
    from residuum.inference.optimize import optimize_for_inference
    from residuum.weights.files import load, read_metadata

    if not images:
        raise DataError("no image was given; name at least one file")
    source = Path(source)
    path = source / "weights.safetensors" if source.is_dir() else source
    classes, preprocessing = _metadata(path, read_metadata(path))
    place = pick_device(device)
    transform = evaluation_transform(preprocessing)

    def read(image: str) -> "Tensor":
        return transform(read_image(image, preprocessing.channels))  # type: ignore[no-any-return]

    model = optimize_for_inference(load(path).to(place))
    predictions = []
    with ThreadPoolExecutor() as readers, torch.inference_mode():
        for begin in range(0, len(images), BATCH):
            batch = images[begin : begin + BATCH]
            pixels = torch.stack(list(readers.map(read, batch)))  # all of the size that the network was trained on
            shares = model(normalise(pixels.to(place), preprocessing)).softmax(1)
            values, indices = shares.topk(min(top, len(classes)))
            for image, best, places in zip(batch, values.tolist(), indices.tolist(), strict=True):
                named = ((classes[i], p) for i, p in zip(places, best, strict=True))
                predictions.append(Prediction(image, tuple(named)))
    return predictions


def _metadata(path: Path, values: dict[str, Any]) -> tuple[tuple[str, ...], "Preprocessing"]:
    from residuum.preprocessing import Preprocessing

    try:
        fields = values["preprocessing"].items()
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields}
        return tuple(values["classes"]), Preprocessing(**given)
    except (KeyError, AttributeError, TypeError):
        raise WeightsError(
            f"{path} does not say its classes and preprocessing; use weights that 'residuum train' saved"
        ) from None
