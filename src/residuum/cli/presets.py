"""`residuum presets`: the published networks."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from residuum.errors import ConfigError, nearest, quoted
from residuum.presets import PRESETS, list_presets, preset_costs, usual_image_size


@dataclass(frozen=True)
class Presets:
    """List the published networks with their depth, parameters and GMAC."""

    # show only names that fit, such as "*resnext*"; a word without a star fits every name that contains it
    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*"


def run(command: Presets, console: Console) -> int:
    """Print the presets whose names fit: depth, parameters, GMAC at the image size that each is meant for.

    A pattern without `*`, `?` or `[` fits every name that contains it. Raises `ConfigError` where none fits.
    """
    from residuum.cli.tables import MAC, figures_table, gigas, show

    pattern = command.pattern
    names = list_presets(pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
    if not names:
        hint = nearest(pattern, PRESETS) or "; 'residuum presets' lists all"
        raise ConfigError(f"no preset's name fits {quoted(pattern)}{hint}")
    table = figures_table("preset", ("depth", "parameters", "GMAC", "image"))
    for name in names:
        (parameters, macs), (height, width) = preset_costs()[name], usual_image_size(name)
        table.add_row(name, str(PRESETS[name].depth), f"{parameters:,}", gigas(macs), f"{height}x{width}")
    show(console, table)
    console.print(MAC, style="dim")
    return 0
