"""Every error the package raises for a user's mistake: what was wrong and what to do, in one sentence or two.

Each is also of the standard kind that it is, so that `except ValueError` works as well. A message has at most
`LONGEST` characters and no control character; what comes from outside goes into it by `quoted`.
"""

import difflib
from collections.abc import Iterable

LONGEST = 500


class ResiduumError(Exception):
    """Base of all errors of this package; the command line prints it and exits 2."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, LONGEST))


class ConfigError(ResiduumError, ValueError):
    """A config, recipe or preset that cannot be: names the field, the value given and what is allowed."""


class DataError(ResiduumError, ValueError):
    """A dataset or image that is missing, unreadable or inconsistent."""


class WeightsError(ResiduumError, ValueError):
    """A weights file that is missing, damaged or does not fit the network."""


class RunError(ResiduumError, RuntimeError):
    """A run folder that cannot be written, read or resumed."""


class DeviceError(ResiduumError, RuntimeError):
    """A device that this machine does not have."""


class BenchError(ResiduumError, ValueError):
    """A comparison that cannot be made or read."""


class DivergedError(ResiduumError, ArithmeticError):
    """A loss that stopped being a number."""


class ExportError(ResiduumError, RuntimeError):
    """A network that cannot leave in the format asked for, or an exported file that does not answer as it does."""


class MissingExtraError(ResiduumError, ImportError):
    """An optional library that is not installed; names the extra that brings it."""


def shortened(text: str, longest: int) -> str:
    """`text` on one line without control characters, its middle left out where it is longer than `longest`."""
    if len(text) > 4 * longest:  # a hostile text is not looked at as a whole
        text = text[: 2 * longest] + text[-2 * longest :]
    clean = "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(clean) <= longest:
        return clean
    head = longest * 3 // 5
    return f"{clean[:head]} ... {clean[len(clean) - (longest - head - 5) :]}"


def quoted(value: object, longest: int = 80) -> str:
    """A value from outside as a message shows it: in quotes where it is text, escaped, and no longer than `longest`."""
    if isinstance(value, str):
        return repr(shortened(value, longest))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**longest:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write the longest ones out
    try:
        return shortened(repr(value), longest)
    except ValueError:
        return f"a {type(value).__name__} too long to show"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'a', 'b'?` with the known names nearest to `word`, or nothing where none is near."""
    if len(word) > 100:
        return ""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def first_line(error: BaseException) -> str:
    """What another library's error says, without the traceback that some put into their message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
