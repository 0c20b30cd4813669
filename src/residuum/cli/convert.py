"""`residuum convert`: weights in the layout of another library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Convert:
    """Write weights in the layout of another library. Reads all that 'inspect' reads."""

    # weights file, folder, or reference such as hf:microsoft/resnet-50
    source: Annotated[str, tyro.conf.Positional]
    # file to write, ending in .safetensors, .pt or .pth; for hf it may be a folder, as from_pretrained wants it
    target: Annotated[Path, tyro.conf.Positional]
    # whose layout to write
    to: Literal["residuum", "torchvision", "timm", "hf", "detectron2"] = "residuum"


def run(command: Convert, console: Console) -> int:
    """Convert, and say what was written."""
    from residuum.weights.converting import convert

    config = convert(command.source, command.target, command.to)
    console.print(
        f"written: {command.target}, in the layout of {command.to}: depth {config.depth}, {config.num_classes} classes",
        highlight=False,
        soft_wrap=True,
    )
    if command.to == "detectron2":
        console.print("detectron2 feeds BGR: its config must say INPUT.FORMAT 'RGB' for weights trained on RGB images.")
    return 0
