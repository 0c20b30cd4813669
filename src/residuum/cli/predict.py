"""`residuum predict`: classes of image files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Predict:
    """Classify image files with a run's network."""

    # run folder, or a weights file of one
    run: Annotated[Path, tyro.conf.Positional]
    # image files
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    # classes to show for each image
    top: int = 3
    # cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"


def run(command: Predict, console: Console) -> int:
    """Print the likeliest classes of each image."""
    from rich.table import Table

    from residuum.inference.predict import predict

    table = Table("image", "class", "probability")
    for prediction in predict(command.run, command.images, top=command.top, device=command.device):
        for rank, (name, probability) in enumerate(prediction.classes):
            table.add_row("" if rank else prediction.path, name, f"{100 * probability:.1f} %")
    console.print(table)
    return 0
