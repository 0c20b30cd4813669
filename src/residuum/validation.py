"""Frozen dataclasses as configs: constraints declared on the fields, checked in one place, in and out of TOML and JSON.

    lr: Annotated[float, Within("(0, 1000]")] = 0.1

A `Literal` is its own constraint, and so is a field that is a config itself.
"""

import dataclasses
import json
import math
import tomllib
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from residuum.errors import ConfigError, nearest, quoted

LARGEST = 2**31 - 1  # of a whole number where its field says nothing else: what torch's sizes may be multiplied by


@dataclass(frozen=True, slots=True)
class Within:
    """An interval written as in mathematics, `[0, 1)`. NaN lies in none."""

    bounds: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(part) for part in self.bounds[1:-1].split(","))
        above = value > low if self.bounds[0] == "(" else value >= low
        return above and (value < high if self.bounds[-1] == ")" else value <= high)

    def __str__(self) -> str:
        return f"a number in {self.bounds}"


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Whole numbers from `low` to `high`."""

    low: int
    high: int = LARGEST

    def __contains__(self, value: int) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"an integer of at least {self.low}" + (f" and at most {self.high}" if self.high != LARGEST else "")


@dataclass(frozen=True, slots=True)
class Field:
    """A declared field: its type without `Annotated`, and what its value has to lie in."""

    name: str
    kind: Any
    constraints: tuple[Within | AtLeast, ...]


@cache
def declared(kind: Any) -> tuple[Field, ...]:
    """The fields of a config class, in order."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for f in dataclasses.fields(kind):
        hint = hints[f.name]
        constraints: tuple[Within | AtLeast, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            constraints = tuple(extra for extra in extras if isinstance(extra, Within | AtLeast))
        found.append(Field(f.name, hint, constraints))
    return tuple(found)


def check(config: Any, section: str = "") -> None:
    """Bring each field of a frozen dataclass into its type and check it; raises `ConfigError` that names the field.

    1 for a float becomes 1.0, a list a tuple. To be called in `__post_init__`; a message names the field by its dotted
    name where the dataclass is a `section` of another one.
    """
    for field in declared(type(config)):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        ok, value = _typed(value, field.kind)
        numbers = value if isinstance(value, tuple) else (value,)
        ok = ok and all(n in c for c in field.constraints for n in numbers if n is not None)
        if ok and not field.constraints:
            ok = all(abs(n) <= LARGEST for n in numbers if type(n) is int)
        if not ok:
            name = f"{section}.{field.name}" if section else field.name
            raise ConfigError(f"{name} is {quoted(value)}; it must be {wanted(field)}")
        object.__setattr__(config, field.name, value)


def _typed(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether a value is of a kind, and the value in that kind."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            ok, converted = _typed(value, option)
            if ok:
                return True, converted
        return False, value
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind)), value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, value
        inner = get_args(kind)
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        parts = [_typed(part, k) for part, k in zip(value, kinds, strict=False)]
        return len(kinds) == len(value) and all(ok for ok, _ in parts), tuple(part for _, part in parts)
    if kind is float:
        if type(value) is int and abs(value) < 2**1023:
            return True, float(value)
        return type(value) is float and math.isfinite(value), value
    if dataclasses.is_dataclass(kind):
        return isinstance(value, kind), value  # type: ignore[arg-type]
    return type(value) is kind or (kind is type(None) and value is None), value


_WORDS = {float: "a number", int: "an integer", bool: "true or false", str: "text", type(None): "left out"}


def wanted(field: Field) -> str:
    """What a field's value must be, in words: `an integer of at least 1`, `one of fp32, bf16`."""
    options = get_args(field.kind) if get_origin(field.kind) in (Union, types.UnionType) else (field.kind,)
    words = " and ".join(str(c) for c in field.constraints)
    if not words:
        return _describe(field.kind)
    many = next((option for option in options if get_origin(option) is tuple), None)
    must = words if many is None else f"{_describe(many)}, each {words}"
    return f"{must}, or left out" if type(None) in options else must


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(_describe(option) for option in get_args(kind))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if origin is tuple:
        inner = get_args(kind)
        if get_origin(inner[0]) is Literal:
            return f"a list, each {_describe(inner[0])}"
        what = {int: "integers", float: "numbers", str: "texts"}.get(inner[0], "values")
        return f"a list of {what}" if inner[-1] is Ellipsis else f"a list of {len(inner)} {what}"
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


def refuse_unknown(values: object, known: Iterable[str], what: str) -> None:
    """Raise `ConfigError` for the first name that is not known, with the nearest that is; or where there are none."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ConfigError(f"{quoted(values)} is not a table of fields; a {what} stands in one")
    known = list(known)
    for name in values:
        if name not in known:
            raise ConfigError(f"{quoted(name)} is not a {what}{nearest(str(name), known)}")


def toml_lines(values: dict[str, Any]) -> str:
    """Strings, numbers, booleans and sequences of these as TOML."""
    import tomli_w

    return tomli_w.dumps(values)


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
