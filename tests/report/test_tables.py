"""Tables in a terminal and in Markdown: whole on any width, and never fooled by what they hold."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from residuum.report.tables import Judged, Table, markdown, print_table

TABLE = Table(
    "Networks [bold]",
    ("network", "images/s", "step, ms", "verdict"),
    (
        ("first [red]x[/red]", "12.5", "80.0", Judged("faster", "better")),
        ("a | `b` <i>", "10.0", "100.0", Judged("noise ±3.0 %", "noise")),
    ),
    "Of [link=x]speed[/link].",
    wide=("step, ms",),
)


def printed(table, width, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    print_table(console, table)
    return console.file.getvalue()


def test_all_that_a_table_holds_is_printed_as_it_is():
    text = printed(TABLE, 120)
    for part in ("Networks [bold]", "first [red]x[/red]", "faster", "noise ±3.0 %", "80.0", "Of [link=x]speed[/link]."):
        assert part in text


def test_a_narrow_terminal_does_without_the_columns_that_are_for_a_wide_one():
    assert "80.0" not in printed(TABLE, 80)
    assert "12.5" in printed(TABLE, 80)


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_a_table_wider_than_the_terminal_comes_in_pieces_with_all_values_whole(width):
    names = [f"contender{i}" for i in range(9)]
    rows = tuple((f"workload {r}", *(f"noise ±{r}{i}.0 %" for i in range(9))) for r in range(3))
    text = printed(Table("Wide", ("workload", *names), rows), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for value in (*names, *(value for row in rows for value in row[1:])):
        assert text.count(value) == 1
    assert text.count("workload 2") >= 1


def test_long_names_are_folded_and_control_characters_shown_as_text():
    name = "n" * 70 + "\x1b[31m"
    text = printed(Table("T", ("network", "a", "b"), ((name, "1", "2"),)), 60)
    assert "\x1b" not in text
    assert text.replace("\n", "").replace(" ", "").count("n") > 60


def test_colour_follows_the_verdict():
    text = printed(TABLE, 120, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[32m *faster", text)


def test_markdown_is_a_table_whatever_the_names():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "### Networks \\[bold\\]"
    assert lines[3] == "| --- | ---: | ---: | ---: |"
    assert lines[5] == "| a \\| \\`b\\` \\<i\\> | 10.0 | 100.0 | noise ±3.0 % |"
    assert lines[-1] == "Of \\[link=x\\]speed\\[/link\\]."
