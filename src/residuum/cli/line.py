"""What a command line says before it is parsed: defaults depend on it."""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from residuum.config import ResNetConfig
from residuum.presets import preset


def value_of(args: Sequence[str], flag: str) -> str | None:
    """The last value of a flag on the line, or None."""
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def of_preset(kind: Callable[[str, ResNetConfig], Any], args: list[str]) -> Any:
    """A command with the fields of the preset named first on the line."""
    if len(args) < 2 or args[1].startswith("-"):
        return kind(tyro.MISSING, ResNetConfig())
    return kind(args[1], preset(args[1]))
