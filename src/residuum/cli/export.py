"""`residuum export`: a network as a file for another runtime, proved to answer alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.validation import AtLeast


@dataclass(frozen=True)
class Export:
    """Write a network for ONNX Runtime, OpenVINO or torch, preprocessing inside, and prove that it answers alike."""

    # run folder, weights file, reference such as torchvision:resnet50.IMAGENET1K_V2, or a preset with random weights
    source: Annotated[str, tyro.conf.Positional]
    # runtime that the file is for
    to: Literal["onnx", "openvino", "pt2"] = "onnx"
    # file to write, ending in .onnx, .xml or .pt2, or the folder for a server; the source's name where left out
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
    # folder of images that the proof compares; the test split of the run where left out, else made-up images alone
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    # write a folder of models for this server, named by --out: Triton, or OpenVINO Model Server (default: the file)
    server: Literal["triton", "ovms"] | None = None


def run(command: Export, console: Console) -> int:
    """Export, and say what was proved."""
    from residuum.cli.console import say
    from residuum.export.command import Request, write

    written = write(
        Request(
            command.source,
            command.to,
            command.out,
            None if command.input == "auto" else command.input,
            command.image_size,
            command.dynamic_size,
            command.order,
            command.opset,
            command.half,
            command.images,
            command.server,
        )
    )
    for note in written.notes:
        say(console, note)
    say(console, f"proved: {written.proof}")
    say(console, f"written: {written.models or written.path}")
    return 0
