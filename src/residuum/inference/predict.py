"""Prediction: classes of image files by the weights of any source, as fast as they can be had."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from residuum.data.ahead import read_ahead
from residuum.errors import ConfigError, DataError, WeightsError, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from residuum.inference.optimize import FoldedResNet
    from residuum.nn.resnet import ResNet

BATCH_SIZE = 32  # images that go through the network together
THRESHOLD = 0.5  # probability from which on a class is said, where an image may be of several
Image = str | Path


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, each with its probability.

    Of a network whose images may be of several classes, all that are likely enough, and it may be none.
    """

    path: str
    classes: tuple[tuple[str, float], ...]


def predict(
    source: Union[str, Path, "ResNet"],
    images: Image | Iterable[Image],
    *,
    top: int = 3,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    threshold: float | None = None,
) -> Iterator[Prediction]:
    """Classify image files: a `Prediction` for each, in their order, given as soon as its batch is done.

    It has the `top` likeliest classes. Where the network was trained on images of several classes, it has all whose
    probability is at least `threshold`, 0.5 where left out.

    `source` is a run folder, a weights file or a reference such as `torchvision:resnet50.IMAGENET1K_V2`, whatever
    `residuum.load` takes, or a network with `classes` and `preprocessing`. `optimize_for_inference` makes it fast, in
    `precision`. Files are read by threads while the network computes, a few batches ahead.

    Raises at once `WeightsError` for weights that cannot be read or do not say their classes and preprocessing,
    `DeviceError`, and `ConfigError` for a number that cannot be; while it goes on, `DataError` for the first image that
    cannot be read, after the predictions of all before its batch.
    """
    if top < 1 or batch_size < 1:
        raise ConfigError(f"top is {quoted(top)} and batch_size {quoted(batch_size)}; both must be at least 1")
    if isinstance(images, str | Path):
        images = (images,)
    if isinstance(images, list | tuple) and not images:
        raise DataError("no image was given; name at least one file")

    from residuum.devices import pick_device
    from residuum.inference.optimize import optimize_for_inference
    from residuum.nn.resnet import ResNet

    if isinstance(source, ResNet):
        model = source
    else:
        place = pick_device(device)
        model = _loaded(source).to(place)
    what = "the network" if isinstance(source, ResNet) else quoted(str(source))
    if model.classes is None or model.preprocessing is None:
        raise WeightsError(
            f"{what} does not say its classes and preprocessing; use weights that 'residuum train' saved or a hub's, "
            "or set them: model.classes, model.preprocessing"
        )
    if not model.several_classes and threshold is not None:
        raise ConfigError(f"a threshold is for networks of several classes an image, which {what} is not; leave it out")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {quoted(threshold)}; it must be a number in [0, 1]")
    fast = optimize_for_inference(model, precision=precision)
    return _predictions(fast, model, images, top, batch_size, THRESHOLD if threshold is None else threshold)


def _loaded(source: str | Path) -> "ResNet":
    import torch

    from residuum.weights.files import load

    with torch.device("cpu"):  # whatever the caller's default is: on the meta device there would be no weights
        return load(source)


def _predictions(
    net: "FoldedResNet", model: "ResNet", images: Iterable[Image], top: int, batch_size: int, threshold: float
) -> Iterator[Prediction]:
    from residuum.data.sources import evaluation_transform, read_image

    classes, preprocessing = model.classes, model.preprocessing
    assert classes is not None and preprocessing is not None
    transform = evaluation_transform(preprocessing)

    def read(path: str) -> "Tensor":
        return transform(read_image(path, preprocessing.channels))

    pixels = read_ahead((os.fspath(image) for image in images), read, 3 * batch_size)
    try:
        while batch := list(itertools.islice(pixels, batch_size)):
            found = _likeliest(net, model, [image for _, image in batch], top, threshold)
            for (path, _), best in zip(batch, found, strict=True):
                yield Prediction(path, tuple((classes[i], probability) for i, probability in best))
    finally:
        pixels.close()


def _likeliest(
    net: "FoldedResNet", model: "ResNet", images: list["Tensor"], top: int, threshold: float
) -> list[list[tuple[int, float]]]:
    """Of each image the places of the likeliest classes and their probabilities."""
    import torch

    from residuum.data.sources import normalise

    assert model.preprocessing is not None
    with torch.inference_mode():  # not around a yield, where it would reach into the caller
        pixels = torch.stack(images).to(net.device)  # all have the size that the network was trained on
        logits = net(normalise(pixels, model.preprocessing))
        shares = logits.sigmoid() if model.several_classes else logits.softmax(1)
        values, places = shares.topk(shares.shape[1] if model.several_classes else min(top, shares.shape[1]))
    least = threshold if model.several_classes else 0.0
    rows = zip(places.tolist(), values.tolist(), strict=True)
    return [[(at, value) for at, value in zip(*row, strict=True) if value >= least] for row in rows]
