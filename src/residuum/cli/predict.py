"""`residuum predict`: classes of image files."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from residuum.cli.console import say, say_fields, visible
from residuum.validation import AtLeast, Within


@dataclass(frozen=True)
class Predict:
    """Classify image files with any network's weights. In a pipe: image, class and probability, a line for each class.

    Weights of other libraries bring their classes and preprocessing with them.
    """

    # run folder, weights file, or reference such as torchvision:resnet50.IMAGENET1K_V2
    source: Annotated[str, tyro.conf.Positional]
    # image files
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    # number of likeliest classes that are shown for each image
    top: Annotated[int, AtLeast(1)] = 3
    # of a network whose images may be of several classes: probability from which on a class is shown (default 0.5)
    threshold: Annotated[float | None, Within("[0, 1]")] = None
    # device that computes: cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"


def run(command: Predict, console: Console) -> int:
    """Print the likeliest classes of each image, as soon as they are known."""
    from residuum.inference.predict import predict

    for prediction in predict(
        command.source, command.images, top=command.top, device=command.device, threshold=command.threshold
    ):
        if console.is_terminal:
            say(console, Text(visible(prediction.path, console), "bold"))
            if not prediction.classes:
                say(console, "  none of the classes")
        for name, probability in prediction.classes:
            if console.is_terminal:
                say(console, f"{100 * probability:7.1f} %  ", name)
            else:
                say_fields(console, prediction.path, name, f"{probability:.4f}")
        console.file.flush()  # whoever reads a pipe sees it now
    return 0
