"""`residuum predict`: classes or features of image files."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.cli import answers
from residuum.cli.console import open_console, say
from residuum.errors import ConfigError
from residuum.inference.predict import BadImages
from residuum.units import counted
from residuum.validation import AtLeast, Within


@dataclass(frozen=True)
class Predict:
    """Classify image files with any network's weights. In a pipe: image, class and probability, a line for each class.

    References and folders of other libraries bring their classes and preprocessing; 'residuum convert' gives them to a
    plain state dict.
    """

    # run folder, weights or exported file, or reference such as torchvision:resnet50.IMAGENET1K_V2
    source: Annotated[str, tyro.conf.Positional]
    # image files, folders, patterns in quotes such as 'photos/**/*.jpg', or - for a list of files on standard input
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    # number of likeliest classes that are shown for each image
    top: Annotated[int, AtLeast(1)] = 3
    # of a network whose images may be of several classes: probability from which on a class is shown (default 0.5)
    threshold: Annotated[float | None, Within("[0, 1]")] = None
    # also look at each image's mirror image, and take the mean of both
    mirrored: bool = False
    # how predictions are written; auto goes by the ending of --out, and is a table on a terminal and lines in a pipe
    format: answers.Format = "auto"
    # file for the predictions; they are printed where left out
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    # file for the features before the classifier, .npz, .npy or .csv; no classes are predicted then
    features: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    # images that cannot be read: skip names each on standard error and exits 1 at the end, stop exits 2 at the first
    bad_images: BadImages = "skip"
    # number of images that are computed at a time; 8 for each core, or 32 on an accelerator, where left out
    batch_size: Annotated[int | None, AtLeast(1)] = None
    # number of threads that read image files; as many as there are cores, at most 8, where left out
    workers: Annotated[int | None, AtLeast(1)] = None
    # device that computes: cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"
    # precision of convolutions; auto is bf16 where the device computes it, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # what runs an exported file: torch, onnxruntime or openvino; auto is the one that it was exported for
    runtime: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    # what computes a network: eager is torch itself, auto the fastest of what is installed, found by a measurement
    engine: Literal["auto", "eager", "inductor", "aoti", "onnxruntime", "openvino"] = "eager"


OF_PREDICTIONS = ("top", "threshold", "mirrored", "format", "runtime", "engine")  # and not of features


def run(command: Predict, console: Console) -> int:
    """Print the likeliest classes of each image as soon as they are known; 1 where an image could not be read."""
    from residuum.inference.predict import embed, predict

    if command.features is not None:
        answers.check_features_file(command.features)
        if command.out is not None:
            raise ConfigError("--features writes its own file, and no predictions; leave out --out")
        for name in OF_PREDICTIONS:
            if getattr(command, name) != getattr(Predict, name):
                raise ConfigError(f"--{name} is for predictions, and --features gives none; leave out --{name}")
    names, total = _names(command.images)
    errors = open_console(stderr=True)
    printed = command.out is None and command.features is None
    watched = answers.Watched(errors, total, bar=errors.is_terminal and not (printed and console.is_terminal))
    if command.features is not None:
        embeddings = embed(
            command.source, names, bad_images=command.bad_images, batch_size=command.batch_size,
            workers=command.workers, device=command.device, precision=command.precision,
        )  # fmt: skip
        answers.write_features(watched(embeddings), command.features)
    else:
        predictions = watched(
            predict(
                command.source, names, top=command.top, threshold=command.threshold, mirrored=command.mirrored,
                bad_images=command.bad_images, batch_size=command.batch_size, workers=command.workers,
                device=command.device, precision=command.precision, runtime=command.runtime, engine=command.engine,
            )
        )  # fmt: skip
        how = answers.chosen_format(command.format, command.out, console)
        if command.out is None:
            answers.write_predictions(predictions, how, console)
        else:
            answers.write_predictions_file(predictions, how, command.out)
    if watched.bad:
        say(errors, f"{watched.bad:,} of {counted(watched.seen, 'image')} could not be read")
    return 1 if watched.bad else 0


def _names(words: Iterable[str]) -> tuple[Iterable[str], int | None]:
    """The files that words name, and how many there are, where that is known before the list's end."""
    from residuum.data.named import LIST, listed_files, named_files

    words = tuple(words)
    if LIST not in words:
        files = named_files(words)
        return files, len(files)
    standard_input = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115 (not ours to close)
    return chain.from_iterable(
        listed_files(standard_input) if word == LIST else named_files([word]) for word in words
    ), None
