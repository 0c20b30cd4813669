"""`residuum inspect`: what a weights file holds."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from residuum.config import ResNetConfig


@dataclass(frozen=True)
class Inspect:
    """Show what a weights file holds: layout, presets that fit, classes, preprocessing, parameters, precision, NaNs."""

    # weights file, run folder, or reference such as timm:resnet50.a1_in1k
    source: Annotated[str, tyro.conf.Positional]
    # name of the network that is meant, where a file holds several (default the only one)
    prefix: str | None = None


def run(command: Inspect, console: Console) -> int:
    """Print what was found."""
    from rich.table import Table
    from rich.text import Text

    from residuum.errors import quoted
    from residuum.weights.checkpoint import some
    from residuum.weights.converting import inspect

    found = inspect(command.source, prefix=command.prefix)
    usual = ResNetConfig()
    fields = {name: value for name, value in found.config.to_dict().items() if value != getattr(usual, name)}
    rows = [("layout", found.layout), ("nearest" if found.differing else "fits", ", ".join(found.presets))]
    if found.differing:
        rows.append(("differs in", ", ".join(found.differing)))
    rows.append(
        ("config", "\n".join(f"{name} = {quoted(value)}" for name, value in fields.items()) or "that of resnet50")
    )
    rows.append(("classes", f"{len(found.classes)}: {some(found.classes)}" if found.classes else "not said"))
    if found.preprocessing is None:
        rows.append(("preprocessing", "not said"))
    else:
        said = found.preprocessing.to_dict()
        rows.append(("preprocessing", "\n".join(f"{name} = {quoted(value)}" for name, value in said.items())))
    rows.append(("parameters", f"{found.parameters:,}"))
    rows.append(("precision", ", ".join(found.precisions)))
    rows.append(("NaN or infinite", some(found.not_finite) or "none"))
    rows += [("note", note) for note in found.notes]
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    return 0
