"""A table before it is dressed, and two of its dresses: a terminal's and Markdown's. The page has the third."""

import re
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from residuum.errors import shortened

Verdict = Literal["better", "worse", "noise"]  # of what was measured: shown by colour too, never by colour alone
STYLES: dict[Verdict, str] = {"better": "green", "worse": "red", "noise": "dim"}
WIDE = 110  # columns of a terminal from which a table shows all of its own
LONGEST = 200  # characters of a value that are shown


@dataclass(frozen=True)
class Judged:
    """A value that says better or worse, or that the difference is within the noise."""

    text: str
    verdict: Verdict

    def __str__(self) -> str:
        return self.text


Value = str | Judged


@dataclass(frozen=True)
class Table:
    """The first column names the rows, the others hold their values. A row has a value for each heading.

    `wide` names the headings whose columns a narrow terminal does without; `note` stands below.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    wide: tuple[str, ...] = ()


def print_table(console: Console, table: Table) -> None:
    """The table in a terminal, its note below. Nothing in it is taken for markup.

    Where it is wider than the terminal, its columns come in pieces, each with the names of the rows.
    """
    title = Text(shortened(table.title, LONGEST), "bold")
    names, pieces = _pieces(table, console.width)
    for piece in pieces:
        rich = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        rich.add_column(Text(table.headings[0]), overflow="fold", max_width=names)
        for place in piece:
            rich.add_column(Text(table.headings[place]), justify="right", no_wrap=True)
        for row in table.rows:
            rich.add_row(*(_text(row[place]) for place in (0, *piece)))
        console.print(rich)
        title = Text("")
    if table.note:
        console.print(Text(table.note, "dim"))
    console.print()


def _pieces(table: Table, width: int) -> tuple[int, list[list[int]]]:
    """How wide the names may be, and the other columns in as many pieces as it takes to show each whole."""
    shown = [i for i, heading in enumerate(table.headings) if i and (width >= WIDE or heading not in table.wide)]
    texts = [[heading, *(str(row[place]) for row in table.rows)] for place, heading in enumerate(table.headings)]
    widths = [max(map(cell_len, column)) + 2 for column in texts]  # with the space around
    names = min(widths[0], max(18, width // 5, width - 2 - sum(widths[place] for place in shown)))
    pieces: list[list[int]] = [[]]
    for place in shown:
        if pieces[-1] and sum(widths[i] for i in [*pieces[-1], place]) > width - names - 2:
            pieces.append([])
        pieces[-1].append(place)
    return names, pieces


def _text(value: Value) -> Text:
    style = STYLES[value.verdict] if isinstance(value, Judged) else ""
    return Text(shortened(str(value), LONGEST), style)


def markdown(table: Table) -> str:
    """The table for a README, under a heading of the third level; ends without a newline."""
    lines = [
        f"### {_in_markdown(table.title)}",
        "",
        "| " + " | ".join(map(_in_markdown, table.headings)) + " |",
        "| --- |" + " ---: |" * (len(table.headings) - 1),
        *("| " + " | ".join(_in_markdown(str(value)) for value in row) + " |" for row in table.rows),
    ]
    return "\n".join(lines) + (f"\n\n{_in_markdown(table.note)}" if table.note else "")


def _in_markdown(text: str) -> str:
    """What Markdown would take for a column, a tag, a link or code stays text."""
    return re.sub(r"([\\|<>`\[\]])", r"\\\1", shortened(text, 10 * LONGEST))
