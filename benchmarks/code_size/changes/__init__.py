"""Ten standard modifications of ResNet-50, as each contender's users would program them, and how many lines that takes.

A program is text that ends with `model` bound to the network: a file of the folder of its contender here, `base` for
the network as it comes. That of the network stacked by hand is its source; its changed sources are made by `edits`.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.code_size.changes.code import code_lines
from benchmarks.code_size.changes.edits import EDITS

from residuum.errors import ConfigError

# Name and title of each modification.
CHANGES = (
    ("half_width", "half width"),
    ("resnet101", "ResNet-101"),
    ("cifar_stem", "CIFAR stem"),
    ("stochastic_depth", "stochastic depth"),
    ("se", "squeeze-and-excitation"),
    ("resnext", "ResNeXt-50 32x4d"),
    ("d_shortcut", "D shortcut"),
    ("four_channels", "4-channel input"),
    ("checkpointing", "checkpointing"),
    ("preactivation", "pre-activation"),
)
CONTENDERS = ("brute_force", "residuum", "torchvision", "timm", "transformers")
_HERE = Path(__file__).parent


def program(contender: str, change: str = "base") -> str:
    """The text of a contender's program with one of `CHANGES`, or with none; raises `ConfigError` for unknown names."""
    names = ("base", *(name for name, _ in CHANGES))
    for what, name, known in (("contender", contender, CONTENDERS), ("change", change, names)):
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r}; it must be one of {', '.join(known)}")
    if contender != "brute_force":
        return (_HERE / contender / f"{change}.py").read_text(encoding="utf-8")
    source = (_HERE.parent / "brute_force.py").read_text(encoding="utf-8")
    return (source if change == "base" else EDITS[change](source)) + "\n\nmodel = ResNet50()\n"


def changed_lines(before: str, after: str) -> int:
    """Lines of code that differ between two programs; where some were replaced, the old or the new, whichever are more.

    Blank lines, comments and docstrings do not count.
    """
    matcher = difflib.SequenceMatcher(None, code_lines(before), code_lines(after), autojunk=False)
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in matcher.get_opcodes() if kind != "equal")


@cache
def _counted(contender: str) -> tuple[tuple[str, int], ...]:
    base = program(contender)
    return tuple((name, changed_lines(base, program(contender, name))) for name, _ in CHANGES)


def lines_to_change(contender: str) -> dict[str, int]:
    """For each of `CHANGES` the lines of code that it adds to, removes from or changes in a contender's program."""
    return dict(_counted(contender))


def load_in_order(model: Any, state: Mapping[str, Any]) -> None:
    """Load weights by order into a module that has other names for them: ours into the network stacked by hand."""
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
