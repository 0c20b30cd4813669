"""The command line: finds the command, calls it, and prints errors in one line."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import tyro
from rich.console import Console
from rich.text import Text

from residuum.cli import bench, convert, inspect, plan, predict, presets, summary, train
from residuum.cli.line import of_preset, value_of
from residuum.errors import ConfigError, ResiduumError

# Command to its class, and to its defaults, which may depend on the line.
COMMANDS: dict[str, tuple[type, Callable[[list[str]], Any]]] = {
    "train": (train.Train, train.defaults),
    "summary": (summary.Summary, partial(of_preset, summary.Summary)),
    "plan": (plan.Plan, partial(of_preset, plan.Plan)),
    "bench": (bench.Bench, lambda args: bench.Bench()),
    "presets": (presets.Presets, lambda args: presets.Presets()),
    "convert": (convert.Convert, lambda args: convert.Convert(tyro.MISSING, tyro.MISSING)),
    "inspect": (inspect.Inspect, lambda args: inspect.Inspect(tyro.MISSING)),
    "predict": (predict.Predict, lambda args: predict.Predict(tyro.MISSING, tyro.MISSING)),
}
RUN: dict[type, Callable[[Any, Console], int]] = {
    train.Train: train.run,
    predict.Predict: predict.run,
    summary.Summary: summary.run,
    plan.Plan: plan.run,
    bench.Bench: bench.run,
    presets.Presets: presets.run,
    convert.Convert: convert.run,
    inspect.Inspect: inspect.run,
}


def parse(args: list[str]) -> Any:
    """The command on the line, as one of the dataclasses above."""
    named = args[0] if args else ""
    if named == "train" and value_of(args, "--resume") is not None:
        extra = [a.partition("=")[0] for a in args[1:] if a.startswith("--") and a.partition("=")[0] != "--resume"]
        if extra:
            raise ConfigError(f"--resume takes the recipe from the run; leave out {' '.join(extra)}")
    union = tyro.extras.subcommand_type_from_defaults(
        {name: default(args if name == named else []) for name, (_, default) in COMMANDS.items()},
        descriptions={name: (kind.__doc__ or "").partition(". ")[0] for name, (kind, _) in COMMANDS.items()},
    )
    return tyro.cli(union, prog="residuum", args=args, description="The residual network family, from one config.")


def main() -> None:
    """Entry point: exits 0, 2 for a user's mistake (one sentence on standard error), 128 + the signal when stopped."""
    try:
        command = parse(sys.argv[1:])
        code = RUN[type(command)](command, Console())
        sys.stdout.flush()
    except ResiduumError as error:
        Console(stderr=True).print(Text("error: ", "bold red") + Text(str(error), "default"), soft_wrap=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
