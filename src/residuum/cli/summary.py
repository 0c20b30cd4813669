"""`residuum summary`: what a network is made of and costs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.config import ResNetConfig
from residuum.errors import ConfigError
from residuum.presets import usual_image_size


@dataclass(frozen=True)
class Summary:
    """Show what a network is made of and what it costs, stage by stage."""

    # the preset to start from; 'residuum presets' lists them
    preset: Annotated[str, tyro.conf.Positional]
    # fields to change
    model: Annotated[ResNetConfig, tyro.conf.arg(name="")]
    # height and width of the image; the preset's usual one where left out
    size: tuple[int, int] | None = None
    # images in a batch
    batch: int = 1
    # of activations
    precision: Literal["fp32", "bf16"] = "fp32"
    # also show every layer, with the MAC of its backward pass
    layers: bool = False
    # also draw the network, as .svg or .png
    draw: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(command: Summary, console: Console) -> int:
    """Print the table; draw where asked."""
    from residuum.cli.tables import summarise
    from residuum.draw import check_drawable, draw

    if command.draw is not None:
        check_drawable(command.draw)
    size = command.size or usual_image_size(command.preset)
    if min(size) < 1 or command.batch < 1:
        raise ConfigError(f"size is {size} and batch {command.batch}; both must be positive")
    totals = summarise(
        console, command.preset, command.model, size, command.batch, command.precision, layers=command.layers
    )
    if command.draw is not None:
        draw(
            command.model,
            command.draw,
            name=command.preset,
            figures=f"{totals} for {_images(command.batch, size)}",
            size=size,
        )
        console.print(f"drawn: {command.draw}", highlight=False, soft_wrap=True)
    return 0


def _images(batch: int, size: tuple[int, int]) -> str:
    return f"{'an image' if batch == 1 else f'{batch} images'} of {size[0]}x{size[1]}"
