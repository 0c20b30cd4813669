"""`residuum compare`: finished runs side by side."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Compare:
    """Compare runs: recipes over their seeds, with intervals. The first run's recipe is what others differ from."""

    # run folders, runs/*
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    # split whose accuracy is compared; auto is the validation split, or the test split where a run has no other
    split: Literal["auto", "val", "test"] = "auto"
    # print JSON in place of tables
    json: bool = False
    # file to write a page to, with learning curves
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(command: Compare, console: Console) -> int:
    """Compare, print, and write the page where asked."""
    from residuum.errors import RunError
    from residuum.evaluation.comparison import as_json, page, print_comparison
    from residuum.evaluation.runs import compare
    from residuum.files import write_text
    from residuum.report.page import html

    if not command.runs:
        raise RunError("which runs are compared? give their folders: residuum compare runs/*")
    found = compare([Path(path) for path in command.runs], command.split)
    if command.html is not None:
        line = shlex.join(["residuum", *sys.argv[1:]])
        write_text(command.html, html(page(found, line)), RunError)
    if command.json:
        console.out(as_json(found), highlight=False)
    else:
        print_comparison(console, found)
    return 0
