"""The run folder: what a run leaves on disk, always whole.

config.toml            the recipe, every default filled in
metrics.jsonl          one line per finished epoch
weights.safetensors    the network's weights, with its config, classes and preprocessing in the metadata
state.pt               everything that resuming needs
curves.png             loss and accuracy over the epochs
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residuum.errors import ConfigError, RunError, first_line
from residuum.files import write_text, write_whole
from residuum.train.recipe import Recipe

FORMAT = 1  # of state.pt; raised when an older package could not read it


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / "weights.safetensors"

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> "Run":
        """A new folder with the recipe in it; raises `RunError` where it exists or cannot be made."""
        if path.exists():
            raise RunError(f"{path} exists already; choose another --out, or go on with it by --resume {path}")
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"the run folder {path} cannot be made: {error.strerror}; choose another --out") from None
        run = cls(path)
        try:
            write_text(path / "config.toml", recipe.to_toml(), RunError)
        except RunError:
            run.remove()
            raise
        return run

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @classmethod
    def open(cls, path: Path) -> tuple["Run", Recipe]:
        """A folder that a run left, and its recipe; raises `RunError` where it is none."""
        run = cls(path)
        missing = [name for name in ("config.toml", "state.pt") if not (path / name).is_file()]
        if missing:
            raise RunError(f"{path} is not a run that can be resumed: it has no {' and no '.join(missing)}")
        try:
            return run, Recipe.from_toml((path / "config.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ConfigError, TypeError) as error:
            raise RunError(f"the recipe in {path / 'config.toml'} cannot be read: {error}") from None

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the training state in one step."""
        import torch

        write_whole(self.path / "state.pt", lambda partial: torch.save(state | {"format": FORMAT}, partial), RunError)

    def load_state(self) -> dict[str, Any]:
        """The training state; raises `RunError` where it is damaged. No code in it is run."""
        import torch

        path = self.path / "state.pt"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = first_line(error)
            raise RunError(f"the state in {path} is damaged and the run cannot be resumed ({reason})") from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise RunError(f"{path} is no training state that this version of residuum reads")
        return state

    def save_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write one line per epoch."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history), RunError)

    def draw_curves(self, history: list[dict[str, Any]]) -> None:
        """Draw loss and accuracy of both parts over the epochs."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        epochs = [row["epoch"] for row in history]
        for axes, quantity, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("", " (%)"), strict=True):
            for part, colour in (("train", "#9aa5b1"), ("test", "#c2410c")):
                scale = 100 if unit else 1
                values = [row[f"{part}_{quantity}"] * scale for row in history]
                axes.plot(epochs, values, color=colour, label=part, linewidth=1.8, marker="o", markersize=2.5)
            axes.set(xlabel="epoch", ylabel=quantity + unit)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        write_whole(self.path / "curves.png", lambda partial: figure.savefig(partial, dpi=130), RunError)


def free_folder(parent: Path, data: str) -> Path:
    """The first of `parent/NAME-1`, `parent/NAME-2`, ... that is not taken."""
    name = Path(data).name or "run"
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
