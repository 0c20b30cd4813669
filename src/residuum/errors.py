"""Every error the package raises for a user's mistake: what was wrong and what to do, in one sentence or two.

Each is also of the standard kind that it is, so that `except ValueError` works as well. A message has at most
`LONGEST` characters and no control character; what comes from outside goes into it by `quoted`.
"""

from collections.abc import Iterable

LONGEST = 500


class ResiduumError(Exception):
    """Base of all errors of this package; the command line prints it and exits 2.

    `speaker` is set once all processes of a run know of it: the rank of the one that prints it.
    """

    speaker: int | None = None

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
    """`; did you mean 'a', 'b'?` with up to three known names near to `word`, or nothing where none is near.

    First those that have it as a part, as `cifar_resnet20` has `resnet20`; then those that begin with it or differ in
    few letters, the fewest first: in one letter of up to seven, in one of four beyond.
    """
    if not 2 <= len(word) <= 100:
        return ""
    plain = word.casefold().replace("_", "-")
    found: list[tuple[bool, int, int, int, str]] = []
    for name in known:
        other = name.casefold().replace("_", "-")
        part = f"-{plain.lstrip('-')}-" in f"-{other}-".replace(".", "-")
        most = max(1, len(plain.lstrip("-")) // 4)
        letters = 0 if part else _letters_apart(plain, other, most)
        if part or letters <= most or other.startswith(plain):
            found.append((not part, letters, -_same_start(plain, other), len(found), name))
    close = [name for *_, name in sorted(found)[:3]]
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""


def _same_start(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _letters_apart(a: str, b: str, most: int) -> int:
    """Letters to change, add, take away or swap with the next until a is b; `most` + 1 where there are more."""
    if abs(len(a) - len(b)) > most:
        return most + 1
    before, row = [], list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            steps = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                steps = min(steps, last[j - 2] + 1)
            row.append(steps)
    return min(row[-1], most + 1)


def first_line(error: BaseException) -> str:
    """What another library's error says, without the traceback that some put into their message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
