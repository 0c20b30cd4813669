"""`residuum recipes`: the published recipes that come with the package."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from residuum.cli.console import say


@dataclass(frozen=True)
class Recipes:
    """List the named recipes with their published accuracies, or show one of them as a recipe file."""

    # show this recipe with all its fields, as a file that training takes
    name: Annotated[str, tyro.conf.Positional] = ""


def run(command: Recipes, console: Console) -> int:
    """Print the list or one recipe."""
    from residuum.cli.tables import figures_table, show
    from residuum.train.recipes import RECIPES, named_recipe

    if command.name:
        found = named_recipe(command.name)
        top1 = ", ".join(f"{preset} {accuracy:.2f} %" for preset, accuracy in found.top1.items())
        about = [
            found.title,
            f"published top-1 on {found.data}: {top1}" if found.top1 else f"for {found.data}; no published top-1",
            f"source: {found.source}",
            *(f"differs: {sentence}" for sentence in found.differs),
            f"reproduced: {found.reproduced or 'no'}",
            *(["epochs, batch size and what goes with them change with the number of images"] if found.sized else []),
        ]
        for line in (*(f"# {sentence}" for sentence in about), *found.to_toml().splitlines()):
            say(console, line)
        return 0
    table = figures_table("recipe", ("network", "data", "epochs", "batch", "top-1", "reproduced"))
    for name, found in RECIPES.items():
        preset = found.fields.get("model.preset", "any")
        run_length = (f"{found.fields['epochs']}", f"{found.fields['batch_size']:,}")
        top1 = f"{found.top1[preset]:.2f} %" if preset in found.top1 else "-"
        table.add_row(name, preset, found.data, *run_length, top1, found.reproduced or "no")
    show(console, table)
    say(console, "top-1 is what was published; 'residuum recipes NAME' shows a recipe and its source")
    return 0
