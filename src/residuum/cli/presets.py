"""`residuum presets`: the published networks."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Presets:
    """List the published networks with depth, parameters and GMAC."""

    # show only names that contain this
    contains: Annotated[str, tyro.conf.Positional] = ""


def run(command: Presets, console: Console) -> int:
    """Print the list."""
    from residuum.cli.tables import list_presets

    list_presets(console, command.contains)
    return 0
