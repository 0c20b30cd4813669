"""A command line: what it gives to whom, in any order, and what is said of one that is wrong."""

import contextlib
import io
import itertools
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import tyro

from residuum import ConfigError, preset
from residuum.cli.line import build, options_of, read, values_of
from residuum.cli.main import COMMANDS
from residuum.cli.summary import Summary, defaults
from residuum.validation import AtLeast, Within


@dataclass(frozen=True)
class Optimizer:
    """What changes the weights."""

    lr: Annotated[float, Within("(0, 10]"), tyro.conf.arg(aliases=("--lr",))] = 0.1
    nesterov: Annotated[bool, tyro.conf.arg(aliases=("--nesterov",))] = True


@dataclass(frozen=True)
class Sail:
    """A command with one flag of each kind."""

    boat: Annotated[str, tyro.conf.Positional]
    crew: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    optimizer: Optimizer = Optimizer()
    size: tuple[int, int] = (1, 1)
    area: tuple[int, int] | None = None
    legs: Annotated[tuple[int, ...], AtLeast(1)] = (1,)
    wind: Literal["calm", "storm"] = "calm"
    cargo: int | Literal["auto"] = "auto"
    fast: bool = False
    found: Annotated[int | None, tyro.conf.Fixed, tyro.conf.Suppress] = None


def sail(*args):
    line = read(Sail, args, "sail")
    return build(Sail, Sail(line.get("boat") or tyro.MISSING), line, "sail")


@pytest.mark.parametrize(
    ("words", "value"),
    [("--size 3 4", (3, 4)), ("--area 3 4", (3, 4)), ("--area None", None), ("--legs 1", (1,)), ("--legs 1 2", (1, 2)),
     ("--wind storm", "storm"), ("--cargo auto", "auto"), ("--cargo 3", 3), ("--fast", True), ("--no-fast", False),
     ("--lr 1", 1.0), ("--optimizer.no-nesterov", False)],
)  # fmt: skip
def test_what_a_line_gives_has_the_types_of_the_fields(words, value):
    given = values_of(Sail, read(Sail, ["boat", *words.split()], "sail"))
    (name,) = given
    assert given[name] == value
    assert type(given[name]) is type(value)
    built = sail("boat", *words.split())
    for part in name.split("."):
        built = getattr(built, part)
    assert built == value


GROUPS = [
    ["--width", "0.5"],
    ["--depths", "1", "1", "2", "1"],
    ["resnet18"],
    ["--preact"],
    ["--image-size", "64", "48"],
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_flags_and_positionals_in_any_order_build_the_same_network(order):
    args = [word for i in order for word in GROUPS[i]]
    line = read(Summary, args, "residuum summary")
    command = build(Summary, defaults(line), line, "residuum summary")
    assert command.model == "resnet18"
    assert command.config == preset("resnet18").replace(width=0.5, depths=(1, 1, 2, 1), preact=True)
    assert command.image_size == (64, 48)


def test_each_kind_of_flag_reaches_its_field():
    command = sail(
        "--optimizer.lr", "2e-1", "--size", "3", "4", "--area", "5", "6", "--legs", "7", "8", "--wind=storm", "--cargo",
        "9", "--fast", "--optimizer.no-nesterov", "--", "-boat", "ann", "--bob",
    )  # fmt: skip
    assert command == Sail(
        "-boat", ("ann", "--bob"), Optimizer(0.2, False), (3, 4), (5, 6), (7, 8), "storm", 9, fast=True
    )


def test_a_flag_has_other_names_and_the_last_one_counts():
    assert sail("x", "--optimizer.lr", "1", "--lr", "3").optimizer.lr == 3
    assert sail("x", "--area", "1", "2", "--area", "None").area is None
    assert not sail("x", "--optimizer.nesterov", "--no-nesterov").optimizer.nesterov


def test_one_number_stands_for_both_of_a_pair():
    assert sail("x", "--size", "3", "ann") == Sail("x", ("ann",), size=(3, 3))
    assert sail("x", "--size", "3x4", "ann") == sail("x", "ann", "--size=3,4") == Sail("x", ("ann",), size=(3, 4))
    assert sail("x", "--size=3", "--area", "5", "--fast") == Sail("x", size=(3, 3), area=(5, 5), fast=True)


def test_a_preset_is_named_by_position_or_by_a_flag():
    by_flag, by_place = (read(Summary, args, "") for args in (["--model", "resnet18"], ["resnet18"]))
    assert by_flag == by_place
    with pytest.raises(ConfigError, match="nothing takes 'resnet34'"):
        read(Summary, ["resnet34", "--model", "resnet18"], "residuum summary")


def test_a_list_leaves_its_last_word_to_a_positional_that_has_none():
    assert sail("--legs", "2", "3", "x", "--fast") == Sail("x", legs=(2, 3), fast=True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("x --wnd calm", "no flag '--wnd'; did you mean '--wind'?"),
        ("x --qqq 3", "no flag '--qqq'; 'sail --help' shows"),
        ("x --win calm", "no flag '--win'; did you mean '--wind'?"),
        ("x --no-optimizer.nesterov", "no flag '--no-optimizer.nesterov'; did you mean '--optimizer.no-nesterov'?"),
        ("x --no-fats", "no flag '--no-fats'; did you mean '--no-fast'?"),
        ("x --wind strom", "--wind is 'strom'; it must be one of calm, storm; did you mean 'storm'?"),
        ("x --wind", "--wind: expected one argument"),
        ("x --size y", "--size: expected 2 arguments"),
        ("x --size 1 2 --size", "--size: expected 2 arguments"),
        ("x --area y", "--area is 'y'; it must be a list of 2 integers, or left out"),
        ("x --legs 2,3", "--legs is '2,3'; it must be a list of integers, each an integer of at least 1: --legs 2 3"),
        ("x --legs [2, 3]", "an integer of at least 1: --legs 2 3"),
        ("x --legs 2 0", "--legs is '2 0'; it must be a list of integers, each an integer of at least 1"),
        ("x --lr nan", "--optimizer.lr is 'nan'; it must be a number in (0, 10]"),
        ("x --lr many", "--optimizer.lr is 'many'; it must be a number in (0, 10]"),
        ("x --lr=-3", "--optimizer.lr is '-3'; it must be a number in (0, 10]"),
        ("x --cargo 1.5", "--cargo is '1.5'; it must be an integer, or one of auto"),
        (f"x --cargo {2**70}", "--cargo is"),
        (f"x --cargo {'9' * 6000}", "--cargo is '9999"),
        ("--fast", "sail needs BOAT"),
        ("x --fast=yes", "--fast"),
        ("x --found 3", "no flag '--found'"),
    ],
)
def test_a_wrong_line_is_answered_with_what_to_write(args, says):
    with pytest.raises(ConfigError) as refused:
        sail(*args.split())
    assert says in str(refused.value)
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_pass_knows_every_flag_that_the_help_shows(name):
    kind, shown = COMMANDS[name].kind, io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"], prog=name)
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown.getvalue()).splitlines()
    starts = [found[1] for line in lines if (found := re.match(r"[│ ]{1,3}(-.*?)(?:   |$)", line))]
    in_help = {flag for start in starts for flag in re.findall(r"(?<![\w.-])--[a-z][\w.-]*", start)}
    flags = [flag for option in options_of(kind) if not option.positional for flag in option.flags]
    assert in_help == {"--help", *(flag for flag in flags if "_" not in flag)}
