"""What commands print: text from outside shows, on any console, and steers nothing."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

from residuum.cli.console import open_console, say, say_fields, visible

HOSTILE = {
    "IMG [edited].jpg": "IMG [edited].jpg",
    "x[/y].jpg": "x[/y].jpg",
    "[bold red]": "[bold red]",
    ":cat:": ":cat:",
    "two\nlines\tand a tab": r"two\nlines\tand a tab",
    "\x1b[31mred\x07": r"\x1b[31mred\x07",
    "right\u202eleft": r"right\u202eleft",
    os.fsdecode(b"caf\xe9.png"): r"caf\xe9.png",
}
FOREIGN = "\u0444\u043e\u0442\u043e.png"  # Cyrillic


def shown(encoding, print_it):
    """What a console of that encoding, strict as Windows opens a file, is given."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_it(Console(file=stream, width=40))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize(("text", "wanted"), HOSTILE.items(), ids=map(ascii, HOSTILE))
def test_text_from_outside_shows_as_it_is_and_steers_nothing(encoding, text, wanted):
    assert shown(encoding, lambda console: say(console, text, Text(" 5 %", "bold"))) == f"{wanted} 5 %\n"
    assert shown(encoding, lambda console: say_fields(console, text, 5)) == f"{wanted}\t5\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_letters_that_a_console_lacks_are_written_as_escapes(encoding):
    wanted = FOREIGN if encoding == "utf-8" else r"\u0444\u043e\u0442\u043e.png"
    assert shown(encoding, lambda console: say(console, FOREIGN)) == f"{wanted}\n"


def test_a_long_name_stays_on_one_line():
    assert shown("utf-8", lambda console: say(console, "x" * 100)) == "x" * 100 + "\n"


@pytest.mark.parametrize("encoding", ["cp1252:strict", "ascii:strict", "utf-8:strict"])
def test_whatever_is_printed_after_a_console_was_opened_ends_in_no_traceback(encoding):
    code = f"""
import os, sys
from rich.table import Table
from residuum.cli.console import open_console
console = open_console()
table = Table(title="[run] \\u0444")
table.add_row("x[/y]", {FOREIGN!a}, os.fsdecode(b"caf\\xe9"))
console.print(table)
console.print("[old] cat", {FOREIGN!a})
print({FOREIGN!a})
print({FOREIGN!a}, file=sys.stderr)
"""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    for part in (b"[run]", b"x[/y]", b"[old] cat", b".png", b"caf"):
        assert part in run.stdout


def test_a_console_opens_where_there_is_no_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as in a program of Windows without a console
    assert open_console(stderr=True).stderr


def test_visible_text_is_one_line():
    assert visible("a\r\nb", Console(file=io.StringIO())) == r"a\r\nb"
