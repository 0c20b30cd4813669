"""`residuum presets`: the published networks."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Presets:
    """List the published networks with their depth, parameters and GMAC."""

    # show only names that fit, such as "*resnext*"; a word without a star fits every name that contains it
    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*"


def run(command: Presets, console: Console) -> int:
    """Print the list."""
    from residuum.cli.tables import print_presets

    print_presets(console, command.pattern)
    return 0
