"""Every error the package raises for a user's mistake: what was wrong and what to do, in one sentence or two."""

import difflib
from collections.abc import Iterable


class ResiduumError(Exception):
    """Base of all errors of this package; the command line prints it and exits 2."""


class ConfigError(ResiduumError):
    """A config, recipe or preset that cannot be: names the field, the value given and what is allowed."""


class DataError(ResiduumError):
    """A dataset or image that is missing, unreadable or inconsistent."""


class WeightsError(ResiduumError):
    """A weights file that is missing, damaged or does not fit the network."""


class RunError(ResiduumError):
    """A run folder that cannot be written, read or resumed."""


class DeviceError(ResiduumError):
    """A device that this machine does not have."""


class BenchError(ResiduumError):
    """A comparison that cannot be made or read."""


class DivergedError(ResiduumError):
    """A loss that stopped being a number."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'a', 'b'?` with the known names nearest to `word`, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def first_line(error: BaseException) -> str:
    """What another library's error says, without the traceback that some put into their message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
