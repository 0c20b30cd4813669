"""Prediction: classes of image files by the weights of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from residuum.errors import DataError, WeightsError

if TYPE_CHECKING:
    from residuum.data.sources import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, each with its probability."""

    path: str
    classes: tuple[tuple[str, float], ...]


def predict(source: str | Path, images: Sequence[str], *, top: int = 3, device: str = "auto") -> list[Prediction]:
    """Classify image files with a run's folder or weights file.

    Raises `WeightsError` for weights that cannot be read or were not saved by training, `DataError` for an image.
    """
    import torch

    from residuum.data.sources import normalise, read_image
    from residuum.devices import pick_device
    from residuum.weights import load, read_metadata

    if not images:
        raise DataError("no image was given; name at least one file")
    source = Path(source)
    path = source / "weights.safetensors" if source.is_dir() else source
    classes, preprocessing = _metadata(path, read_metadata(path))
    place = pick_device(device)
    model = load(path).to(place).eval()
    transform = preprocessing.transform()
    batch = [transform(read_image(image, preprocessing.channels)) for image in images]
    predictions = []
    with torch.inference_mode():
        for image, pixels in zip(images, batch, strict=True):
            logits = model(normalise(pixels[None].to(place), preprocessing))
            values, indices = logits.float().softmax(1)[0].topk(min(top, len(classes)))
            best = zip(indices.tolist(), values.tolist(), strict=True)
            predictions.append(Prediction(image, tuple((classes[i], p) for i, p in best)))
    return predictions


def _metadata(path: Path, values: dict[str, Any]) -> tuple[tuple[str, ...], "Preprocessing"]:
    from residuum.data.sources import Preprocessing

    try:
        fields = values["preprocessing"].items()
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields}
        return tuple(values["classes"]), Preprocessing(**given)
    except (KeyError, AttributeError, TypeError):
        raise WeightsError(
            f"{path} does not say its classes and preprocessing; use weights that 'residuum train' saved"
        ) from None
