"""`residuum train`: from a recipe to a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from residuum.cli.console import say
from residuum.cli.line import Line, values_of
from residuum.data.catalog import Catalog, scan
from residuum.errors import ConfigError
from residuum.presets import preset
from residuum.train.execution import Execution, rank, world_size
from residuum.train.loggers import Callback
from residuum.train.recipe import NAMES, Recipe, layered, layers, read_recipe, train_images
from residuum.train.run import Run
from residuum.units import counted
from residuum.validation import AtLeast

Named = Annotated[str | None, tyro.conf.arg(name="model", metavar="PRESET")]


@dataclass(frozen=True)
class Train:
    """Train a network and leave a run folder. Without arguments: the handwritten digits that come with the package."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    execution: Annotated[Execution, tyro.conf.arg(name="")]
    # a published network in place of the one that goes with the data; 'residuum presets' lists them
    preset: Named = None
    # named recipe, or TOML file with any part of one; the command line goes over it, and it over the defaults of the
    # data; 'residuum recipes' lists the named ones
    file: Annotated[str | None, tyro.conf.arg(name="recipe", metavar="NAME|FILE.toml")] = None
    # run folder to make; runs/DATA-N where left out
    out: Path | None = None
    # run folder to go on with; its recipe stands, but for more epochs. 'auto' goes on with the run in --out if it has
    # saved a state, and begins it if not
    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN|auto")] = None
    # only print recipe, steps, learning rates, and the time and memory to expect; no run folder is made
    dry_run: bool = False
    # number of steps to profile, after the first few, into the run folder: a trace and a table of operations
    profile: Annotated[int, AtLeast(0)] = 0
    # what was found where the data is, for the defaults
    catalog: Annotated[Catalog | None, tyro.conf.Fixed, tyro.conf.Suppress] = None


def defaults(line: Line) -> Train:
    """`Train` with the defaults that go with the data, preset, weights, recipe file or run named on the line."""
    if world_size() > 1 and not line.asks_help:
        from residuum.train.distributed import join

        join(float(line.get("timeout") or Execution.timeout))  # what is wrong in one is then said for all
    file, resumed = line.get("recipe"), line.get("resume")
    parts = read_recipe(file) if file is not None else {}
    given = {} if line.asks_help else {n: value for n, value in values_of(Train, line).items() if n in NAMES}
    if "model" in line:
        given["model.preset"] = line.get("model")
    if resumed == "auto" and not line.asks_help:
        resumed = _begun(line)
    if resumed is not None and not line.asks_help:
        recipe, execution, _ = Run(Path(resumed)).read()
        data = (parts | given).get("data.path") or recipe.data.path
        values, model = layers(parts, given, lambda: train_images(scan(data), recipe.data.holdout))
        if model is not None:
            theirs = ("in_channels", "num_classes") + (() if recipe.finetune.weights is None else ("width",))
            fitted = {name: getattr(recipe.model, name) for name in theirs}
            recipe = recipe.replace(model=preset(model).replace(**fitted))
        return Train(recipe.replace(values), execution)
    data = (parts | given).get("data.path") or "digits"
    catalog = scan("digits" if line.asks_help else data)
    if line.asks_help:
        return Train(Recipe.default(catalog, line.get("model")), Execution(), catalog=catalog)
    return Train(layered(parts, given, catalog), Execution(), catalog=catalog)


def _begun(line: Line) -> str | None:
    """The run in `--out` if it has a state to go on from; of several processes the first one looks."""
    from residuum.train.distributed import join

    out = line.get("out")
    if out is None:
        raise ConfigError("--resume auto goes on with the run in --out; name it by --out")
    team = join(float(line.get("timeout") or Execution.timeout))
    return out if team.of_first(lambda: Run(Path(out)).goes_on()) else None


def run(command: Train, console: Console) -> int:
    """Train, resume or only estimate; 130 or 143 where a signal ended it."""
    from residuum.train.loggers import ConsoleLogger
    from residuum.train.session import begin_or_resume, fit, resume

    console.quiet = rank() > 0
    recipe, catalog, callbacks = command.recipe, command.catalog, (ConsoleLogger(console),)
    if command.dry_run:
        _estimate(command, console, callbacks)
        return 0
    how: Any = {"execution": command.execution, "callbacks": callbacks, "profile": command.profile}
    if command.resume == "auto" and command.out is not None:
        result = begin_or_resume(recipe, out=command.out, catalog=catalog, **how)
    elif command.resume is not None:
        if command.out is not None:
            raise ConfigError("a run that is resumed stays in its folder; leave out --out")
        result = resume(command.resume, recipe=recipe, **how)
    else:
        result = fit(recipe, out=command.out, catalog=catalog, **how)

    if result.stopped_by is not None:
        say(console, f"stopped and saved; go on with:  residuum train --resume {result.path}")
        return 128 + result.stopped_by
    accuracies = [
        f"{split} accuracy {100 * result.metrics[f'{split}_accuracy']:.2f} %"
        for split in ("val", "test")
        if f"{split}_accuracy" in result.metrics
    ]
    say(
        console,
        f"{', '.join(accuracies) or 'trained'} after {counted(result.metrics['epoch'], 'epoch')} in "
        f"{result.seconds:.1f} s; run in {result.path}",
    )
    say(console, f"predict with:  residuum predict {result.path} IMAGE ...")
    return 0


SPARKS = 48  # columns of the curve of the learning rate
_LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(values: Sequence[float], console: Console) -> str:
    """Values from 0 to their highest as a line of blocks, or of digits where the terminal has no blocks."""
    levels = _LEVELS if console.encoding.startswith("utf") else "01234567"
    top = max(values) or 1.0
    return "".join(levels[min(int(len(levels) * value / top), len(levels) - 1)] for value in values)


def _estimate(command: Train, console: Console, callbacks: Sequence[Callback]) -> None:
    """Print what the run would be and take."""
    from residuum.train.estimate import estimate
    from residuum.train.loggers import duration
    from residuum.train.session import memory_in_words

    place = command.out if command.resume == "auto" else command.resume
    resumed = command.resume is not None and Run(Path(str(place))).goes_on()
    found = estimate(command.recipe, command.execution, callbacks=callbacks, catalog=command.catalog, resumed=resumed)
    total = found.steps * found.recipe.epochs
    rates = ", ".join(f"{lr:.4g} at step {step:,}" for step, lr in found.rates())
    lines = dict(found.facts) | {
        "steps": f"{found.steps:,} an epoch, {total:,} in all",
        "lr": rates,
        "": sparkline(found.curve(SPARKS), console),
        **({"target": found.target} if found.target else {}),
        "time": f"{duration(found.seconds)} in all, {1000 * found.step_seconds:.1f} ms a step, of which "
        f"{found.waiting:.0%} waiting for data",
        "memory": memory_in_words(found.memory, found.images, found.plan, command.execution.memory),
    }
    console.print(found.recipe.to_toml(), highlight=False, markup=False)
    for topic, text in lines.items():
        callbacks[0].say(topic, text)
