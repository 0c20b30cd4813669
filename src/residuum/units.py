"""Sizes of memory and numbers of things as people write them: 8GB, 7.5GiB, 1 image, 2 images. No torch here."""

import math
import re

from residuum.errors import ConfigError, quoted

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_MOST = 10**18


def parse_size(text: str | int) -> int:
    """Bytes in a size such as 8GB (8e9), 7.5GiB (7.5 * 2^30), 500MB, or a plain number; raises `ConfigError`."""
    if isinstance(text, str):
        found = re.fullmatch(r"\s*([+-]?[0-9]*\.?[0-9]+)\s*([kmgt]i?)?(b)?\s*", text, re.IGNORECASE)
        if found is None:
            raise ConfigError(f"{quoted(text)} is not a size of memory; write it like 8GB or 7.5GiB")
        size = float(found[1]) * _UNITS[(found[2] or "").lower()]
    else:
        size = text
    if not 1 <= size < _MOST:
        raise ConfigError(
            f"the memory budget is {quoted(text)}; it must be more than 0, such as 8GB, and below 1000000TB"
        )
    return int(size)


def show_budget(asked: str | int) -> str:
    """A budget in the unit in which it was asked for, and in bytes by thousands: 7.5 GiB (8.05 GB), 8.00 GB."""
    size = parse_size(asked)
    unit = re.search(r"([kmgt])i", str(asked), re.IGNORECASE)
    if unit is None:
        return show_size(size)
    prefix = unit[1].upper() + "i"
    return f"{size / _UNITS[prefix.lower()]:g} {prefix}B ({show_size(size)})"


def show_size(size: float, *, enough: bool = False) -> str:
    """Bytes as people write them, in the unit that `parse_size` reads: 1.23 GB; rounded up to be `enough`."""
    unit = next((u for u in ("T", "G", "M", "k") if size >= _UNITS[u.lower()]), "")
    places = 2 if unit else 0
    shown = size / _UNITS[unit.lower()]
    return f"{math.ceil(shown * 10**places) / 10**places if enough else shown:.{places}f} {unit}B"


def counted(number: float, thing: str) -> str:
    """A number with the thing that it counts, in the plural but for 1: `1 epoch`, `1,797 images`, `2 classes`."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:g} {thing}{ending}" if isinstance(number, float) else f"{number:,} {thing}{ending}"
