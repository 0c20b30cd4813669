"""A command line, read in two passes: argparse finds what it gives to whom, then tyro builds the command.

Defaults depend on what the line names, a preset or a dataset, wherever it names it. So a first pass, which knows all
flags of the command and how many words each takes, reads the line without any default. It alone decides what belongs to
what: tyro gets the words sorted, with the defaults that go with them, builds the command and writes the help.
"""

import argparse
import contextlib
import dataclasses
import io
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import tyro

from residuum.errors import ConfigError, ResiduumError, nearest, quoted
from residuum.validation import LARGEST, AtLeast, Field, Within, wanted

_SIDES = re.compile(r"([0-9]+)[x,]([0-9]+)")  # of an image, as many write them
_MOST_SHOWN = 10  # words of a list that a message writes out


@dataclass(frozen=True)
class Option:
    """A flag or positional of a command: its name in the help, other names, its type, what its value must lie in.

    A flag in a nested config has the dotted name that the help shows, such as `model.width`.
    """

    name: str
    aliases: tuple[str, ...]
    kind: Any
    constraints: tuple[Within | AtLeast, ...]
    positional: bool
    required: bool
    repeated: bool = False  # a list of which each time that the flag stands on the line gives one word

    @property
    def words(self) -> int | str:
        """How many words it takes, as argparse says it: a number, or `*` for a list."""
        if self.kind is bool:
            return 0
        if self.repeated:
            return 1
        counts: set[int | str] = set()
        for kind in _members(self.kind):
            inner = get_args(kind) if get_origin(kind) is tuple else (kind,)
            counts.add("*" if inner[-1] is Ellipsis else len(inner))
        return counts.pop() if len(counts) == 1 else "*"

    @property
    def flags(self) -> list[str]:
        """All spellings on the line, the help's first; a switch's second one turns it off."""
        found = [f"--{self.name}"]
        if self.kind is bool:
            path, dot, last = self.name.rpartition(".")
            found.append(f"--{path}{dot}no-{last}")
            found += [f"--no-{name[2:]}" for name in self.aliases if name.startswith("--")]
        found += self.aliases
        return found + [flag for name in found if (flag := f"--{name[2:].replace('-', '_')}") not in found]


@dataclass(frozen=True)
class Line:
    """What a command line gives, as text: name of a flag or positional to its words. No default is filled in."""

    given: dict[str, tuple[str, ...]]
    asks_help: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def get(self, name: str) -> str | None:
        """The last word given to a flag or positional, or None where the line does not have it."""
        words = self.given.get(name)
        return words[-1] if words else None


def read(kind: type, args: Sequence[str], prog: str) -> Line:
    """What `args` gives to the command `kind`, flags and positionals in any order; raises `ConfigError`.

    A list takes all the words that follow it, but leaves its last one to a positional that would have none.
    """
    options = options_of(kind)
    flags = [option for option in options if not option.positional]
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true")
    for option in flags:
        nargs = None if option.words == 1 else option.words
        action = _KeepAll if option.repeated else _Keep
        parser.add_argument(*option.flags, action=action, dest=option.name, nargs=nargs)
    if any(option.positional and option.name == "model" for option in options):  # as `residuum train` has it
        parser.add_argument("--model", action=_Keep, dest="model")
    before, after = list(args), []
    if "--" in before:  # no flag follows this sign
        end = before.index("--")
        before, after = before[:end], before[end + 1 :]
    found, rest = parser.parse_known_args(_both(before, flags), argparse.Namespace(given={}))
    line = Line(found.given, "help" in found)
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
    if line.asks_help:
        rest = [word for word in rest if not word.startswith("-")]
    elif unknown:
        word = re.sub(r"^--no-(.+\.)", r"--\1no-", unknown[0])  # of a dotted switch it stands behind the dot
        off = "no-" in word
        meant = nearest(word, [option.flags[1 if off and option.kind is bool else 0] for option in flags])
        raise ConfigError(f"{prog} has no flag {quoted(unknown[0])}{meant or f'; {_ask(prog)}'}")
    left = _assign(line.given, [option for option in options if option.positional], flags, [*rest, *after])
    if not line.asks_help:
        if left:
            raise ConfigError(f"nothing takes {quoted(left[0])} on this line; {_ask(prog)}")
        _check(line, options, prog)
    return line


def build(kind: type, default: Any, line: Line, prog: str) -> Any:
    """The command, an instance of `kind`: `default` with what the line gives.

    Raises what a config in it raises, in place of tyro's own words.
    """
    words, positionals = sorted_words(kind, line)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, default=default, prog=prog, args=[*words, "--", *positionals])
    except SystemExit as ended:
        raise _cause(ended) or ConfigError(f"{_plain(said.getvalue())}; {_ask(prog)}") from None


def values_of(kind: type, line: Line) -> dict[str, Any]:
    """What the line gives to the flags of a command, in their types; a name has underscores, as its field has."""
    return {
        option.name.replace("-", "_"): _value(line.given[option.name], option.kind)
        for option in options_of(kind)
        if option.name in line.given and not option.positional
    }


def sorted_words(kind: type, line: Line) -> tuple[list[str], list[str]]:
    """The words that give a command what the line gives it: flags in the class's order, and positionals."""
    words: list[str] = []
    positionals: list[str] = []
    for option in options_of(kind):
        values = line.given.get(option.name)
        if values is None:
            continue
        if option.positional:
            positionals += values
        elif option.repeated:
            words += [f"{option.flags[0]}={value}" for value in values]
        elif option.words == 0:
            words.append(option.flags[0 if values == ("True",) else 1])
        elif option.words == 1:  # behind a sign of equality, what looks like a flag is still a value
            words.append(f"{option.flags[0]}={values[0]}")
        else:
            words += [option.flags[0], *values]
    return words, positionals


def print_help(kind: Any, prog: str, **about: Any) -> None:
    """Print the help that tyro writes; `about` is its `default` or `description`."""
    with contextlib.suppress(SystemExit):
        tyro.cli(kind, prog=prog, args=["--help"], **about)


@cache
def options_of(kind: type, prefix: str = "") -> tuple[Option, ...]:
    """Flags and positionals of a command's class, named as tyro names them; nested configs are walked through."""
    hints = get_type_hints(kind, include_extras=True)
    found: list[Option] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        extras: tuple[Any, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *annotated = get_args(hint)
            extras = tuple(annotated)
        if tyro.conf.Fixed in extras:  # is not for the line to give
            continue
        name, aliases, above = field.name.replace("_", "-"), (), prefix
        for extra in extras:  # `tyro.conf.arg` gives an object with these attributes
            name = name if getattr(extra, "name", None) is None else extra.name
            aliases = getattr(extra, "aliases", None) or aliases
            above = "" if getattr(extra, "prefix_name", None) is False else above
        full = ".".join(part for part in (above, name) if part)
        if dataclasses.is_dataclass(hint):
            found += options_of(hint, full)  # type: ignore[arg-type]
        else:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            bounds = tuple(extra for extra in extras if isinstance(extra, Within | AtLeast))
            marks = (tyro.conf.Positional in extras, required, tyro.conf.UseAppendAction in extras)
            found.append(Option(full, tuple(aliases), hint, bounds, *marks))
    return tuple(found)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; {_ask(self.prog)}")


class _Keep(argparse.Action):
    """Keeps the words of a flag, in `given`; the flag that comes last on the line stands last."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.nargs == 0:
            last = str(option_string).rpartition(".")[2].lstrip("-")
            values = "False" if last.startswith(("no-", "no_")) else "True"
        namespace.given.pop(self.dest, None)
        namespace.given[self.dest] = (values,) if isinstance(values, str) else tuple(values)


class _KeepAll(_Keep):
    """Keeps the words of a flag that may stand on the line several times, all of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = namespace.given.get(self.dest, ())
        super().__call__(parser, namespace, values, option_string)
        namespace.given[self.dest] = before + namespace.given[self.dest]


def _both(args: Sequence[str], flags: Sequence[Option]) -> list[str]:
    """The words of a line, where one word for a flag that takes two numbers is both: `--image-size 32`, or 32x48."""
    pairs = {flag for option in flags if tuple[int, int] in _members(option.kind) for flag in option.flags}
    found: list[str] = []
    for place, word in enumerate(args):
        flag, sign, value = word.partition("=")
        if flag in pairs and sign:
            sides = _SIDES.fullmatch(value)
            found += [flag, *(sides.groups() if sides else (value, value))]
            continue
        if found and found[-1] in pairs and (sides := _SIDES.fullmatch(word)):
            found += sides.groups()
            continue
        found.append(word)
        first, second = ([*args[place + 1 : place + 3], "", ""])[:2]
        if word in pairs and _number(first) and not _number(second):
            found.append(first)
    return found


def _number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def _assign(
    given: dict[str, tuple[str, ...]], positionals: list[Option], flags: list[Option], words: list[str]
) -> list[str]:
    """Give the words to the positionals, in order; those that are left over come back."""
    lists = {option.name for option in flags if option.words == "*"}
    for option in positionals:
        if option.name in given:
            continue
        many = option.words == "*"
        took, words = (words, []) if many else (words[:1], words[1:])
        if not took and option.required and not many:
            greedy = next((name for name in reversed(given) if name in lists and len(given[name]) > 1), None)
            if greedy is not None:
                *kept, last = given[greedy]
                given[greedy], took = tuple(kept), [last]
        if took:
            given[option.name] = tuple(took)
    return words


def _check(line: Line, options: Sequence[Option], prog: str) -> None:
    """Raise `ConfigError` for a positional that is missing, or for words that are no value of their flag's type."""
    for option in options:
        name = option.name.upper() if option.positional else option.flags[0]
        words = line.given.get(option.name)
        if words is None and option.positional and option.required:
            raise ConfigError(f"{prog} needs {name}; {_ask(prog)}")
        if words is not None and not _fits(words, option.kind, option.constraints):
            must = wanted(Field(option.name, option.kind, option.constraints))
            hint = nearest(words[0], _literals(option.kind)) if len(words) == 1 else ""
            apart = tuple(filter(None, re.split(r"[\s,;x()\[\]]+", " ".join(words))))
            if 1 < len(apart) < _MOST_SHOWN and _fits(apart, option.kind, option.constraints):
                hint = f": {name} {' '.join(apart)}"
            raise ConfigError(f"{name} is {quoted(' '.join(words))}; it must be {must}{hint}")


def _members(kind: Any) -> tuple[Any, ...]:
    """The types in a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _literals(kind: Any) -> list[str]:
    """The words among which a value is chosen."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [word for inner in get_args(kind) for word in _literals(inner)]


def _fits(words: tuple[str, ...], kind: Any, bounds: tuple[Within | AtLeast, ...]) -> bool:
    """Whether words make a value of a type within bounds."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(words, member, bounds) for member in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        kinds = inner[:1] * len(words) if inner[-1] is Ellipsis else inner
        return len(kinds) == len(words) and all(
            _fits((word,), each, bounds) for word, each in zip(words, kinds, strict=True)
        )
    if len(words) != 1:
        return False
    if get_origin(kind) is Literal:
        return words[0] in _literals(kind)
    if kind is type(None):
        return words[0] == "None"
    if kind not in (int, float):
        return True
    try:
        number = kind(words[0])
    except ValueError:
        return False
    return all(number in bound for bound in bounds) and (bool(bounds) or kind is float or abs(number) <= LARGEST)


def _value(words: tuple[str, ...], kind: Any) -> Any:
    """The value that words make, which fit a type."""
    if get_origin(kind) in (Union, types.UnionType):
        fitting = [member for member in get_args(kind) if _fits(words, member, ())]
        return None if type(None) in fitting else _value(words, fitting[0])
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        kinds = inner[:1] * len(words) if inner[-1] is Ellipsis else inner
        return tuple(_value((word,), each) for word, each in zip(words, kinds, strict=True))
    if get_origin(kind) is Literal:
        return next(value for value in get_args(kind) if str(value) == words[0])
    if kind is bool:
        return words[0] == "True"
    return kind(words[0]) if callable(kind) else words[0]


def _cause(error: BaseException) -> ResiduumError | None:
    """The error of ours that made tyro end."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ResiduumError):
        found = found.__cause__ or found.__context__
    return found


def _plain(box: str) -> str:
    """What tyro says in a box, as one paragraph."""
    return " ".join("".join(" " if "\u2500" <= c <= "\u257f" else c for c in box).split())


def _ask(prog: str) -> str:
    return f"'{prog} --help' shows what is possible"
