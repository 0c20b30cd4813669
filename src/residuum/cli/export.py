"""`residuum export`: a network as a file for another runtime, proved to answer alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.validation import AtLeast, Within


@dataclass(frozen=True)
class Export:
    """Write a network for ONNX Runtime, OpenVINO or torch, preprocessing inside, and prove that it answers alike."""

    # run folder, weights file, reference such as torchvision:resnet50.IMAGENET1K_V2, or a preset with random weights
    source: Annotated[str, tyro.conf.Positional]
    # runtime that the file is for; pt2, aoti (compiled for this kind of processor) and torchscript are torch's. Where
    # left out, what the ending of --out says, and else onnx
    to: Literal["onnx", "openvino", "pt2", "aoti", "torchscript"] | None = None
    # file to write, ending in .onnx, .xml, .pt2, .aoti.pt2 or .torchscript, or the folder for a server; the source's
    # name where left out
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    # what the file takes: decoded images of any size, pixels of the network's size, or normalised tensors; images where
    # the weights say their preprocessing, and else normalised tensors (default auto)
    input: Literal["auto", "image", "pixels", "normalized"] = "auto"
    # height and width in pixels for pixels and normalised tensors; those of the weights where left out
    image_size: Annotated[tuple[int, int] | None, AtLeast(1)] = None
    # let height and width of pixels and normalised tensors be free
    dynamic_size: bool = False
    # order of the channels of images and pixels
    order: Literal["rgb", "bgr"] = "rgb"
    # version of ONNX's operators; torch's choice where left out
    opset: int | None = None
    # store the weights of OpenVINO files in fp16
    half: bool = False
    # precision in which an OpenVINO file is proved and run: what the processor has, bf16 included, or fp32 alone; other
    # programs must then ask OpenVINO for it
    precision: Literal["auto", "fp32"] = "auto"
    # folder of images that the proof compares beside made-up ones; where left out, images of the run's test split, or
    # else of its validation or train split; without a run and its data only made-up ones
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    # write a folder of models for this server, named by --out: Triton, or OpenVINO Model Server (default: the file)
    server: Literal["triton", "ovms"] | None = None
    # write the network in 8-bit integers, judged on the test or validation split of its run
    int8: bool = False
    # folder of images that set the ranges of the integers; training images of the run where left out
    calibration: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    # number of images that set the ranges of the integers
    calibration_images: Annotated[int, AtLeast(32)] = 300
    # points of top-1 accuracy that integers may cost; blocks stay in float until they cost no more
    max_drop: Annotated[float, Within("[0, 100]")] = 1.0


def run(command: Export, console: Console) -> int:
    """Export, and say what was proved."""
    from residuum.cli.console import say
    from residuum.export.command import Request, write
    from residuum.export.int8.gate import GateError
    from residuum.export.int8.report import tables
    from residuum.export.write import format_of
    from residuum.report.tables import print_table

    said = None if command.out is None else format_of(command.out)
    request = Request(
        source=command.source, to=command.to or said or "onnx", out=command.out,
        input=None if command.input == "auto" else command.input, image_size=command.image_size,
        dynamic_size=command.dynamic_size, order=command.order, opset=command.opset, half=command.half,
        precision=command.precision, images=command.images, server=command.server, int8=command.int8,
        calibration=command.calibration, calibration_images=command.calibration_images, max_drop=command.max_drop,
    )  # fmt: skip
    try:
        written = write(request, lambda text: say(console, text))
    except GateError as error:
        print_table(console, error.table)
        raise
    if written.int8 is not None:
        for table in tables(written.int8):
            print_table(console, table)
    for note in written.notes:
        say(console, note)
    say(console, f"proved: {written.proof}")
    say(console, f"written: {written.models or written.path}")
    return 0
