"""`residuum train`: from a recipe to a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from residuum.cli.line import Line
from residuum.data.catalog import facts
from residuum.errors import ConfigError
from residuum.train.recipe import Recipe, check_fit, default_recipe, recipe_file, with_file
from residuum.train.run import free_folder

CACHE = Path("~/.cache/residuum")
Named = Annotated[str | None, tyro.conf.arg(name="model", metavar="PRESET")]


@dataclass(frozen=True)
class Train:
    """Train a network and leave a run folder. Without arguments: the handwritten digits that come with the package."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    # a published network in place of the one that goes with the data; 'residuum presets' lists them
    preset: Named = None
    # a recipe in TOML; the command line goes over it, and it over the defaults
    file: Annotated[Path | None, tyro.conf.arg(name="recipe", metavar="FILE.toml")] = None
    # run folder to make; runs/DATA-N where left out
    out: Path | None = None
    # run folder to go on with; its recipe stands
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    # where downloaded datasets are kept
    root: Path = CACHE


def defaults(line: Line) -> Train:
    """`Train` with the defaults that go with the data, preset and recipe file named on the line."""
    if "resume" in line:
        extra = [f"--{name}" for name in line.given if name != "resume"]
        if extra:
            raise ConfigError(f"--resume takes the recipe from the run; leave out {' '.join(extra)}")
    file = line.get("recipe")
    values = recipe_file(Path(file)) if file else {}
    data = "digits" if line.asks_help else line.get("data") or values.get("data", "digits")
    model = line.get("model") or values.get("model", {}).get("preset")
    return Train(with_file(default_recipe(facts(data), model), values))


def run(command: Train, console: Console) -> int:
    """Train or resume; 130 or 143 where a signal ended it."""
    from residuum.train import loop
    from residuum.train.loggers import Reporter
    from residuum.train.run import Run

    root = command.root.expanduser()
    if command.resume is not None:
        run, recipe = Run.open(command.resume)
        outcome = loop.resume(run, recipe, facts(recipe.data), root, Reporter(console))
    else:
        recipe, about = command.recipe, facts(command.recipe.data)
        check_fit(recipe, about)
        run = Run(command.out or free_folder(Path("runs"), recipe.data))
        outcome = loop.start(recipe, about, run.path, root, Reporter(console))

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    if outcome.stopped_by is not None:
        say(f"stopped and saved; go on with:  residuum train --resume {run.path}")
        return 128 + outcome.stopped_by
    say(
        f"test accuracy {100 * outcome.metrics['test_accuracy']:.2f} % "
        f"after {outcome.metrics['epoch']} epochs in {outcome.seconds:.1f} s; run in {run.path}"
    )
    say(f"predict with:  residuum predict {run.path} IMAGE ...")
    return 0
