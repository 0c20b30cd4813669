"""What tables of figures share: how they look, and how counts are written."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

MAC = "A MAC is one multiply-add, two FLOP."


def gigas(count: int) -> str:
    """A count in units of 10^9."""
    return f"{count / 1e9:,.2f}" if count >= 1e9 else f"{count / 1e9:.3f}"


def figures_table(first: str, headings: Sequence[str]) -> Table:
    """An empty table of names and figures, as narrow as they allow."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show(console: Console, table: Table) -> None:
    """Print a table at its own width: a figure that is cut would be a wrong one."""
    usual = console.width
    console.width = max(usual, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    console.width = usual
