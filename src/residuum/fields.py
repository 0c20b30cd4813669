"""Fields of a frozen dataclass: checked against their type and range, and in and out of TOML and JSON."""

import json
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

from residuum.errors import ConfigError, nearest

_WANTED = {tuple: "a list of integers", float: "a number", int: "an integer", bool: "true or false", str: "text"}


def typed(name: str, value: Any, default: Any) -> Any:
    """`value` in the type of the field's default, or `ConfigError`: 1 for a float becomes 1.0, a list a tuple."""
    kind = type(default)
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list | tuple) and all(type(v) is int for v in value):
        return tuple(value)
    if type(value) is kind and kind is not tuple:
        return value
    raise ConfigError(f"{name} is {value!r}; it must be {_WANTED[kind]}")


def inside(value: float, bounds: str) -> bool:
    """Whether `value` lies in an interval written as in mathematics, `[0, 1)`. NaN lies in none."""
    low, high = (float(part) for part in bounds[1:-1].split(","))
    above = value > low if bounds[0] == "(" else value >= low
    return above and (value < high if bounds[-1] == ")" else value <= high)


def refuse_unknown(values: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `ConfigError` for the first name that is not known, with the nearest that is."""
    known = list(known)
    for name in values:
        if name not in known:
            raise ConfigError(f"{name!r} is not a {what}{nearest(name, known)}")


def toml_lines(values: dict[str, Any]) -> str:
    """Strings, numbers, booleans and sequences of these as `name = value` lines; JSON spells them as TOML does."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def parse_toml(text: str) -> dict[str, Any]:
    """The table in a TOML text, or `ConfigError`."""
    return _parse(tomllib.loads, text, "TOML")


def parse_json(text: str) -> dict[str, Any]:
    """The object in a JSON text, or `ConfigError`."""
    return _parse(json.loads, text, "JSON")


def _parse(load: Callable[[str], Any], text: str, form: str) -> dict[str, Any]:
    try:
        values = load(text)
    except (ValueError, RecursionError) as error:  # both parsers' own errors are ValueErrors
        raise ConfigError(f"this is not valid {form}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"this {form} holds a {type(values).__name__}, not a table of fields")
    return values
