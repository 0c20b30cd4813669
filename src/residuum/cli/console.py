"""Where every command prints: a console on which text from outside shows as it is, whatever is in it."""

import contextlib
import sys

from rich.console import Console
from rich.text import Text


def open_console(*, stderr: bool = False) -> Console:
    r"""The console of a command, on standard output or standard error.

    Strings are printed as they are: brackets are no markup, `:name:` is no emoji. A letter that the stream's encoding
    lacks is written as its escape, such as `\u0444`, and never ends the program. Standard output and error are both
    set to that, so that what other libraries print is safe too: open the console before anything is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # closed, missing, or another's stand-in
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def visible(text: object, console: Console) -> str:
    r"""Text from outside as `console` can show it, on one line.

    Control characters, which would steer the terminal, and bytes of a file name that are no letters are written as
    escapes, such as `\n` and `\xe9`; so are letters that the console's encoding lacks.
    """
    clean = "".join(c if c.isprintable() else _escaped(c) for c in str(text))
    encoding = console.encoding
    return clean.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is no letter in a file name
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def say(console: Console, *parts: object) -> None:
    """Print one line, never wrapped: strings and numbers from anywhere, and `Text`, whose style is kept."""
    line = Text()
    for part in parts:
        line.append(visible(part, console), part.style if isinstance(part, Text) else "")
    console.print(line, soft_wrap=True, highlight=False)


def say_fields(console: Console, *fields: object) -> None:
    """Print one line of fields with a tab between two, for programs that read it."""
    print(*(visible(field, console) for field in fields), sep="\t", file=console.file)
