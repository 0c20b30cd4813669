"""`residuum evaluate`: how good a network is on labelled images."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Evaluate:
    """Measure a network on labelled images: accuracy, loss, calibration, class by class. Each image counts once."""

    # run folder, weights or exported file, or reference such as timm:resnet50.a1_in1k
    source: Annotated[str, tyro.conf.Positional]
    # dataset to evaluate on: a name or a path of any kind; that of the run where left out
    data: str | None = None
    # split to evaluate on; auto is the test split, or the validation split where there is none
    split: Literal["auto", "train", "val", "test"] = "auto"
    # second network to compare with on the same images: a run folder, weights or exported file, or reference
    against: str | None = None
    # share of the training images that is the validation split where the data has none; that of the run where left out
    holdout: float | None = None
    # height and width in pixels of the images; those that the weights were trained for where left out
    image_size: tuple[int, int] | None = None
    # number of images that go through the network together
    batch_size: int = 64
    # precision of convolutions; auto is bf16 where the device computes it, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # what runs an exported file: torch, onnxruntime or openvino; auto is the one that it was exported for
    runtime: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    # also look at each image's mirror image, and take the mean of both
    mirrored: bool = False
    # leave out image files that cannot be decoded instead of stopping at the first
    skip_bad_images: bool = False
    # device to compute on: cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"
    # folder for the page, pictures and tables; none is written where left out
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None


def run(command: Evaluate, console: Console) -> int:
    """Evaluate, print, and write the folder where asked."""
    from residuum.evaluation.command import Request, evaluate_and_report
    from residuum.evaluation.evaluate import How

    how = How(command.split, command.batch_size, command.device, command.precision, command.mirrored, command.runtime)
    request = Request(
        command.source, command.against, command.data, command.holdout, command.image_size, command.skip_bad_images,
        command.out,
    )  # fmt: skip
    return evaluate_and_report(request, how, console, shlex.join(["residuum", *sys.argv[1:]]))
