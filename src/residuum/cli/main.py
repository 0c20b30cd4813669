"""The command line: finds the command, calls it, and prints errors in one paragraph."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro
from rich.console import Console
from rich.text import Text

import residuum
from residuum.cli import (
    ablate,
    bench,
    compare,
    convert,
    data,
    doctor,
    evaluate,
    explain,
    export,
    inspect,
    plan,
    predict,
    presets,
    recipes,
    summary,
    train,
)
from residuum.cli.console import open_console, say
from residuum.cli.line import Line, build, print_help, read
from residuum.errors import ConfigError, ResiduumError, nearest, quoted


@dataclass(frozen=True)
class Command:
    """A command: its dataclass, an instance of it with the defaults that go with a line, and what it does."""

    kind: type
    defaults: Callable[[Line], Any]
    run: Callable[[Any, Console], int]


COMMANDS = {
    "train": Command(train.Train, train.defaults, train.run),
    "predict": Command(predict.Predict, lambda line: predict.Predict(tyro.MISSING, tyro.MISSING), predict.run),
    "explain": Command(
        explain.Explain, lambda line: explain.Explain(tyro.MISSING, tyro.MISSING, tyro.MISSING), explain.run
    ),
    "evaluate": Command(evaluate.Evaluate, lambda line: evaluate.Evaluate(tyro.MISSING), evaluate.run),
    "compare": Command(compare.Compare, lambda line: compare.Compare(tyro.MISSING), compare.run),
    "data check": Command(data.DataCheck, lambda line: data.DataCheck(tyro.MISSING), data.run_check),
    "data pack": Command(data.DataPack, lambda line: data.DataPack(tyro.MISSING), data.run_pack),
    "summary": Command(summary.Summary, summary.defaults, summary.run),
    "presets": Command(presets.Presets, lambda line: presets.Presets(), presets.run),
    "recipes": Command(recipes.Recipes, lambda line: recipes.Recipes(), recipes.run),
    "plan": Command(plan.Plan, plan.defaults, plan.run),
    "convert": Command(convert.Convert, lambda line: convert.Convert(tyro.MISSING, tyro.MISSING), convert.run),
    "export": Command(export.Export, lambda line: export.Export(tyro.MISSING), export.run),
    "inspect": Command(inspect.Inspect, lambda line: inspect.Inspect(tyro.MISSING), inspect.run),
    "ablate": Command(ablate.Ablate, ablate.defaults, ablate.run),
    "bench": Command(bench.Bench, lambda line: bench.Bench(), bench.run),
    "doctor": Command(doctor.Doctor, lambda line: doctor.Doctor(), doctor.run),
}


def run(args: Sequence[str]) -> int:
    """Do what a command line says; the exit code. Raises `ResiduumError` for a user's mistake."""
    console = open_console()
    words = 2 if " ".join(args[:2]) in COMMANDS else 1
    name = " ".join(args[:words])
    if name in ("-h", "--help"):
        _help("")
        return 0
    if name == "--version":
        say(console, f"residuum {residuum.__version__}")
        return 0
    inner = [known.removeprefix(f"{name} ") for known in COMMANDS if known.startswith(f"{name} ")] if name else []
    if inner:
        if "-h" in args or "--help" in args:
            _help(f"{name} ")
            return 0
        raise ConfigError(
            f"'residuum {name}' is followed by {' or '.join(inner)}"
            + (f", but not by {quoted(args[1])}{nearest(args[1], inner)}" if len(args) > 1 else "")
        )
    if name not in COMMANDS:
        wrong = f"{quoted(name)} is not a command" if name else "a command is needed"
        known = f"; the commands are {', '.join(COMMANDS)}: 'residuum --help' says what each does"
        raise ConfigError(f"{wrong}{nearest(name, COMMANDS) or known}")
    command, prog = COMMANDS[name], f"residuum {name}"
    line = read(command.kind, args[words:], prog)
    defaults = command.defaults(line)
    if line.asks_help:
        print_help(command.kind, prog, default=defaults)
        return 0
    return command.run(build(command.kind, defaults, line, prog), console)


def _help(group: str) -> None:
    """The commands and what each does: all, or those that begin with the words of a group."""
    kinds = []
    for full, command in COMMANDS.items():
        if not full.startswith(group):
            continue
        name = full.removeprefix(group)
        first_sentence = (command.kind.__doc__ or "").split(". ")[0].rstrip(".")
        kinds.append(Annotated[command.kind, tyro.conf.subcommand(name, description=first_sentence)])
    about = "The residual network family in PyTorch, from one config."
    print_help(Union[tuple(kinds)], f"residuum {group}".rstrip(), description=about)  # noqa: UP007


def main() -> None:
    """Entry point: exits 0, 2 for a user's mistake (one paragraph on standard error), 128 + the signal when stopped."""
    code = 0
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except ResiduumError as error:
        code = _refuse(str(error)) if _speaks(error) else 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone; nobody is left to tell
        _mute(sys.stdout)
    except OSError as error:  # a disk that is full, a path too long for the system, a file that may not be read
        where = f"{quoted(error.filename)}: " if error.filename else ""
        code = _refuse(f"{where}{error.strerror or error}")
        _mute(sys.stdout)  # what could not be printed is not tried again at the end
    sys.exit(code)


def _speaks(error: ResiduumError) -> bool:
    """Whether this process is to print an error: of several that train together one does."""
    if sys.argv[1:2] != ["train"] or os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from residuum.train.distributed import speaks

    return speaks(error)


def _refuse(message: str) -> int:
    with contextlib.suppress(OSError):
        say(open_console(stderr=True), Text("error: ", "bold red"), message)
    return 2


def _mute(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # not of the system's kind
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
