"""`residuum inspect`: what a weights file holds."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from residuum.config import ResNetConfig


@dataclass(frozen=True)
class Inspect:
    """Show what a weights file holds: its layout, the presets that fit, parameters, precision, NaNs."""

    # weights file, folder, or reference such as timm:resnet50.a1_in1k
    source: Annotated[str, tyro.conf.Positional]


def run(command: Inspect, console: Console) -> int:
    """Print what was found."""
    from rich.table import Table

    from residuum.weights.converting import inspect

    found = inspect(command.source)
    usual = ResNetConfig()
    table = Table(show_header=False)
    table.add_row("layout", found.layout)
    exact = not found.differing
    table.add_row("fits" if exact else "nearest", ", ".join(found.presets))
    if not exact:
        table.add_row("differs in", ", ".join(found.differing))
    fields = {name: value for name, value in found.config.to_dict().items() if value != getattr(usual, name)}
    table.add_row("config", "\n".join(f"{name} = {value}" for name, value in fields.items()) or "that of resnet50")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("precision", ", ".join(found.precisions))
    table.add_row("NaN or infinite", ", ".join(found.not_finite) or "none")
    console.print(table)
    return 0
