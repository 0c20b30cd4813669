"""`residuum convert`: weights in the layout of another library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.errors import ConfigError
from residuum.units import counted


@dataclass(frozen=True)
class Convert:
    """Write weights in the layout of another library, with their classes and preprocessing where it has a place.

    To hub, it is a folder with a card, which this package, timm and transformers load.
    """

    # weights file, run folder, or reference such as hf:microsoft/resnet-50 or torchvision:resnet50.IMAGENET1K_V2
    source: Annotated[str, tyro.conf.Positional]
    # file to write, ending in .safetensors, .pt or .pth; for hf it may be a folder, as from_pretrained wants it;
    # for hub it is a folder
    target: Annotated[Path, tyro.conf.Positional]
    # library whose layout is written
    to: Literal["residuum", "torchvision", "timm", "hf", "detectron2", "hub"] = "residuum"
    # name of the network that is meant, where a file holds several (default the only one)
    prefix: str | None = None
    # what happens to images before the network, for weights that do not say it: imagenet (224x224 pixels cut from the
    # middle of 256, ImageNet's mean and deviation), or weights, a run or a reference whose own it is, or a JSON file of
    # the fields; written into .safetensors of residuum and folders of hf
    preprocessing: Annotated[str | None, tyro.conf.arg(metavar="imagenet|SOURCE|FILE.json")] = None
    # imagenet for the names of its 1,000 classes, or a text file with the name of a class on each line, in the order of
    # the logits; written as preprocessing is
    classes: Annotated[str | None, tyro.conf.arg(metavar="imagenet|FILE")] = None
    # for hub: evaluation.json of 'residuum evaluate', whose figures go into the card; none where left out
    metrics: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    # for hub: repository to upload the folder to, made private where it is not there; not uploaded where left out
    push: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None


def run(command: Convert, console: Console) -> int:
    """Convert, and say what was written."""
    from rich.text import Text

    from residuum.weights.converting import convert
    from residuum.weights.reading import shown

    if command.to == "hub":
        from residuum.weights.pretrained import publish

        if command.preprocessing is not None or command.classes is not None:
            raise ConfigError(
                "a folder of the hub gets what its weights say; write them to a .safetensors file with --preprocessing "
                "and --classes first, and convert that"
            )
        config, address = publish(
            command.source, command.target, prefix=command.prefix, metrics=command.metrics, repository=command.push
        )
        if address is not None:
            console.print(Text(f"uploaded: {address}"), soft_wrap=True)
    else:
        if command.metrics is not None or command.push is not None:
            raise ConfigError("--metrics and --push are for a folder of the hub; add --to hub, or leave them out")
        config = convert(
            command.source, command.target, command.to, prefix=command.prefix,
            preprocessing=command.preprocessing, classes=command.classes,
        )  # fmt: skip
    line = f"in the layout of {command.to}: depth {config.depth}, {counted(config.num_classes, 'class')}"
    console.print(Text(f"written: {shown(command.target)}, {line}"), soft_wrap=True)
    if command.to == "detectron2":
        console.print("detectron2 feeds BGR: its config must say INPUT.FORMAT 'RGB' for weights trained on RGB images.")
    return 0
