"""`residuum summary`: what a network is made of and costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.cli.console import say
from residuum.cli.line import Line
from residuum.config import ResNetConfig
from residuum.presets import preset, usual_image_size
from residuum.validation import AtLeast


@dataclass(frozen=True)
class Summary:
    """Show what a network is made of and what it costs, stage by stage."""

    # name of the preset to start from, also as --model MODEL; 'residuum presets' lists all
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    # the fields of the config, with the preset's values as defaults
    config: Annotated[ResNetConfig, tyro.conf.arg(name="")]
    # height and width of the images in pixels; the default is the size that the preset is meant for
    image_size: Annotated[tuple[int, int], AtLeast(1, 2**16), tyro.conf.arg(metavar="HEIGHT WIDTH")]
    # number of images in the batch that is costed
    batch_size: Annotated[int, AtLeast(1, 2**20)] = 1
    # number format of the activations, whose memory is counted
    precision: Literal["fp32", "bf16"] = "fp32"
    # show every layer as well, with the MAC of its backward pass
    layers: bool = False
    # draw the network into this file as well, which ends in .svg or .png
    draw: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def defaults(line: Line) -> Summary:
    """`Summary` with the fields and the image size of the preset that the line names."""
    name = line.get("model")
    return Summary(name or tyro.MISSING, preset(name or "resnet50"), usual_image_size(name or "resnet50"))


def run(command: Summary, console: Console) -> int:
    """Print the table; draw where asked."""
    from residuum.cli.summary_report import summarise
    from residuum.draw import check_drawable, draw

    if command.draw is not None:
        check_drawable(command.draw)
    totals = summarise(
        console,
        command.model,
        command.config,
        command.image_size,
        command.batch_size,
        command.precision,
        layers=command.layers,
    )
    if command.draw is not None:
        height, width = command.image_size
        images = "" if command.batch_size == 1 else f" for {command.batch_size} images"
        draw(
            command.config,
            command.draw,
            name=command.model,
            figures=f"{totals}{images} at {height}x{width}",
            image_size=command.image_size,
        )
        say(console, "drawn: ", command.draw)
    return 0
