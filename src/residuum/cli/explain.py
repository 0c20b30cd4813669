"""`residuum explain`: which parts of images speak for a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.cli.console import say, say_fields
from residuum.validation import AtLeast


@dataclass(frozen=True)
class Explain:
    """Draw which parts of images speak for a class: a picture for each image, a sheet of them, and the maps as arrays.

    In the pictures red speaks for the class and blue against it, on one scale for all classes of an image.
    """

    # run folder, weights file, or reference such as torchvision:resnet50.IMAGENET1K_V2
    source: Annotated[str, tyro.conf.Positional]
    # image files, folders with such in them, or patterns such as 'photos/*.jpg'
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    # folder to make for pictures and maps
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    # Grad-CAM, integrated gradients (needs captum), or how far a class falls where a grey square covers the image
    method: Literal["gradcam", "ig", "occlusion"] = "gradcam"
    # topN for the N likeliest classes of each image, or names or numbers of classes with commas between (default top3)
    classes: str = "top3"
    # for gradcam: stage whose feature map is looked at, counted from 1; the last one where left out
    stage: Annotated[int | None, AtLeast(1)] = None
    # device that computes: cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"


def run(command: Explain, console: Console) -> int:
    """Explain the images, and say of each what was written, as soon as it is."""
    from residuum.data.named import named_files
    from residuum.inference.explanations import explain_files

    def told(image: str, classes: Sequence[tuple[str, float]], picture: Path) -> None:
        if console.is_terminal:
            likely = ", ".join(f"{name} {100 * share:.1f} %" for name, share in classes)
            say(console, f"{image}: ", likely)
        else:
            say_fields(console, image, picture, *(f"{name} {share:.4f}" for name, share in classes))
        console.file.flush()

    explain_files(
        command.source, named_files(command.images), command.out, method=command.method, classes=command.classes,
        stage=command.stage, device=command.device, say=told,
    )  # fmt: skip
    if console.is_terminal:
        say(console, "written: ", command.out)
    return 0
