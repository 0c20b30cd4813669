"""Prediction: classes or features of image files by the weights of any source, as fast as they can be had."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args

from residuum.errors import ConfigError, DataError, quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from residuum.inference.answering import Answering
    from residuum.nn.resnet import ResNet
    from residuum.runtimes.exported import Runtime

THRESHOLD = 0.5  # probability from which on a class is said, where an image may be of several
Image = str | Path
BadImages = Literal["stop", "skip"]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, each with its probability.

    Of a network whose images may be of several classes, all that are likely enough, and it may be none. Of an image
    that cannot be read `error` says why, and there are no classes.
    """

    # the image file
    path: str
    # name and probability of each class
    classes: tuple[tuple[str, float], ...]
    # why the image cannot be read, in a sentence
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Embedding:
    """The features of one image, pooled over height and width: float32 (features,), or why it cannot be read."""

    # the image file
    path: str
    # float32 (features,)
    features: "NDArray[np.float32] | None"
    # why the image cannot be read, in a sentence
    error: str | None = None


def predict(
    source: Union[str, Path, "ResNet"],
    images: Image | Iterable[Image],
    *,
    top: int = 3,
    threshold: float | None = None,
    mirrored: bool = False,
    bad_images: BadImages = "stop",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    runtime: "Runtime" = "auto",
    engine: str = "eager",
) -> Iterator[Prediction]:
    """Classify image files: a `Prediction` for each, in their order, given as soon as its batch is done.

    It has the `top` likeliest classes. Where the network was trained on images of several classes, it has all whose
    probability is at least `threshold`, 0.5 where left out. `mirrored` takes the mean of the probabilities of an image
    and its mirror image.

    `source` is a run folder, a weights file or a reference such as `torchvision:resnet50.IMAGENET1K_V2`, whatever
    `residuum.load` takes, or a network with `classes` and `preprocessing`. `optimize_for_inference` makes it fast, in
    `precision`, by its `engine`. It may also be an exported file, which `runtime` runs. `images` may come one by one
    from a generator: a batch is computed as soon as no more are there. Files are read by `workers` threads, as many as
    there are cores where left out, while the network computes. `batch_size` images, 8 for each core or 32 where left
    out, are computed at a time.

    Raises at once `WeightsError` for weights that cannot be read or do not say their classes and preprocessing,
    `DeviceError`, and `ConfigError` for a value that cannot be and for a network of other channels than images have.
    While it goes on, an image that cannot be read raises
    `DataError` after the predictions of all before it; with `bad_images="skip"` it has a `Prediction` with `error`.
    """
    paths = _paths(images)
    _check(top=top, batch_size=batch_size, workers=workers, bad_images=bad_images)

    from residuum.inference.answering import answering

    network = answering(
        source, device=device, precision=precision, runtime=runtime, engine=engine, batch_size=batch_size
    )
    _check_channels(network)
    if not network.several_classes and threshold is not None:
        raise ConfigError(
            f"a threshold is for networks of several classes an image, which {network.what} is not; leave it out"
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {quoted(threshold)}; it must be a number in [0, 1]")
    least = THRESHOLD if threshold is None else threshold

    def compute(pixels: "list[Tensor]") -> list[tuple[tuple[str, float], ...]]:
        return _likeliest(network, _shares(network, pixels, mirrored), top, least)

    answers = _answers(network, paths, compute, batch_size, workers, bad_images)
    return (Prediction(path, () if error else found, error) for path, found, error in answers)


def embed(
    source: Union[str, Path, "ResNet"],
    images: Image | Iterable[Image],
    *,
    bad_images: BadImages = "stop",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Embedding]:
    """The features of image files that the classifier would get: an `Embedding` for each, in their order.

    Everything else is as in `predict`; weights without classes will do.
    """
    paths = _paths(images)
    _check(top=1, batch_size=batch_size, workers=workers, bad_images=bad_images)

    from residuum.inference.answering import answering

    network = answering(source, device=device, precision=precision, features=True)
    _check_channels(network)
    answers = _answers(
        network, paths, lambda pixels: list(network(pixels).cpu().numpy()), batch_size, workers, bad_images
    )
    return (Embedding(path, found, error) for path, found, error in answers)


def _paths(images: Image | Iterable[Image]) -> Iterable[str]:
    if isinstance(images, str | Path):
        images = (images,)
    if isinstance(images, Sequence):
        if not images:
            raise DataError("no image was given; name at least one file")
        return [os.fspath(image) for image in images]
    return (os.fspath(image) for image in images)


def _check(*, top: int, batch_size: int | None, workers: int | None, bad_images: str) -> None:
    for name, value in (("top", top), ("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {quoted(value)}; it must be at least 1")
    if bad_images not in get_args(BadImages):
        raise ConfigError(f"bad_images is {quoted(bad_images)}; it must be one of {', '.join(get_args(BadImages))}")


def _check_channels(network: "Answering") -> None:
    channels = network.preprocessing.channels
    if channels not in (1, 3):
        raise ConfigError(
            f"{network.what} looks at {channels} channels, and image files give 1 (grey) or 3 (RGB); run it on tensors "
            "of your own, by residuum.load"
        )


def _answers(
    network: "Answering",
    paths: Iterable[str],
    compute: Any,
    batch_size: int | None,
    workers: int | None,
    bad_images: str,
) -> Generator[tuple[str, Any, str | None]]:
    """Each path with what `compute` makes of it, or with what is wrong with it."""
    from residuum.data.decoding import read_image
    from residuum.inference.stream import READERS, streamed, usual_batch

    channels = network.preprocessing.channels

    answers = streamed(
        paths,
        lambda path: network.prepare(read_image(path, channels)),
        compute,
        batch_size=batch_size or usual_batch(network.lanes),
        lanes=network.lanes,
        readers=workers or READERS,
    )
    with closing(answers):
        for path, found in answers:
            if not isinstance(found, DataError):
                yield path, found, None
            elif bad_images == "skip":
                yield path, None, str(found)
            else:
                raise found


def _shares(network: "Answering", images: "list[Tensor]", mirrored: bool) -> "Tensor":
    """The probabilities of classes, (N, classes)."""

    def of(views: "list[Tensor]") -> "Tensor":
        logits = network(views)
        return logits.sigmoid() if network.several_classes else logits.softmax(1)

    return (of(images) + of([image.flip(2) for image in images])) / 2 if mirrored else of(images)


def _likeliest(
    network: "Answering", shares: "Tensor", top: int, threshold: float
) -> list[tuple[tuple[str, float], ...]]:
    """Of each image the likeliest classes and their probabilities."""
    several, classes = network.several_classes, network.classes
    values, places = shares.topk(shares.shape[1] if several else min(top, shares.shape[1]))
    least = threshold if several else 0.0
    rows = zip(places.tolist(), values.tolist(), strict=True)
    return [tuple((classes[at], value) for at, value in zip(*row, strict=True) if value >= least) for row in rows]
