"""The run folder: what a run leaves on disk, always whole.

recipe.toml            the recipe, every default filled in
execution.toml         how it was carried out: device, workers, memory
environment.json       with which code, libraries and device, and from which epoch on
data.json              what it was trained on: classes, files of each class, and a digest of all
metrics.jsonl          one line per finished epoch; the last one also tells of the test split
weights.safetensors    the network's weights, with its config, classes and preprocessing in the metadata
best.safetensors       those of the first epoch with the highest accuracy on the validation split, if there is one
state.pt               everything that resuming needs; state-previous.pt is the one before
curves.png             loss and accuracy over the epochs
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from residuum.data.listing import Catalog, labels_of
from residuum.errors import ConfigError, RunError, first_line, quoted
from residuum.files import new_folder, write_text, write_whole
from residuum.train.execution import Execution
from residuum.train.recipe import Recipe

BEST = "best.safetensors"
STATES = ("state.pt", "state-previous.pt")


@dataclass(frozen=True)
class DataRecord:
    """What a run remembers of its data: classes, the number of files in each by split, and a digest of all of them."""

    classes: tuple[str, ...]
    files: Mapping[str, Mapping[str, int]]
    digest: str

    @classmethod
    def of(cls, catalog: Catalog) -> Self:
        """That of a catalog."""
        counts = {
            split: dict(Counter(catalog.classes[i] for _, label in files for i in labels_of(label)))
            for split, files in catalog.files.items()
        }
        return cls(tuple(catalog.classes), counts, catalog.digest)

    def to_json(self) -> str:
        """A JSON object."""
        return json.dumps({"classes": self.classes, "digest": self.digest, "files": self.files}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; raises `ValueError`, `KeyError` or `TypeError` for other text."""
        values = json.loads(text)
        return cls(tuple(values["classes"]), values["files"], values["digest"])

    def changed(self, now: "DataRecord") -> str | None:
        """What is different now, in words, or None."""
        if self.classes != now.classes:
            gone = [quoted(name) for name in self.classes if name not in now.classes]
            new = [quoted(name) for name in now.classes if name not in self.classes]
            words = [f"{word} {', '.join(names[:3])}" for word, names in (("without", gone), ("with", new)) if names]
            return f"its classes are now {' and '.join(words) or 'in another order'}"
        if self.digest == now.digest:
            return None
        for split in sorted({*self.files, *now.files}):
            before, after = self.files.get(split, {}), now.files.get(split, {})
            for name in self.classes:
                if before.get(name, 0) != after.get(name, 0):
                    return f"class {quoted(name)} had {before.get(name, 0)} {split} files and has {after.get(name, 0)}"
        return "its files have other names or sizes than before, or have moved between train, val and test"


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / "weights.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the epoch that did best on the validation split."""
        return self.path / BEST

    @classmethod
    def create(
        cls, path: Path, recipe: Recipe, execution: Execution, data: DataRecord, fill: Callable[[Self], None]
    ) -> Self:
        """A new folder with recipe, execution and data in it, and what `fill` puts there: the first state.

        It comes to its place in one step, with all of that in it, so that a run that is killed at any time can go on or
        has left nothing. An empty folder gives way to it. Raises `RunError` where there is something else at its place,
        or where it cannot be made.
        """
        refuse_existing(path)
        with contextlib.suppress(OSError, ValueError):
            path.rmdir()
        with new_folder(path, RunError) as partial:
            run = cls(partial)
            run.write_recipe(recipe, execution)
            write_text(partial / "data.json", data.to_json(), RunError)
            fill(run)
        return cls(path)

    def goes_on(self) -> bool:
        """Whether there is a state to go on from; raises `RunError` where something else than a run is in the way."""
        try:
            if any((self.path / name).is_file() for name in STATES):
                return True
        except OSError as error:
            raise RunError(f"the run folder {quoted(str(self.path))} cannot be read: {error.strerror}") from None
        if _taken(self.path):
            named = quoted(str(self.path))
            raise RunError(f"{named} is not a run that can be resumed: it has no {STATES[0]}; choose another --out")
        return False

    def write_recipe(self, recipe: Recipe, execution: Execution) -> None:
        """Write down what is trained and how."""
        write_text(self.path / "recipe.toml", recipe.to_toml(), RunError)
        write_text(self.path / "execution.toml", execution.to_toml(), RunError)

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def read(self) -> tuple[Recipe, Execution, DataRecord]:
        """What `create` wrote; raises `RunError` where the folder is none that a run left."""
        named = quoted(str(self.path))
        try:
            missing = [name for name in ("recipe.toml", "data.json") if not (self.path / name).is_file()]
            if not any((self.path / name).is_file() for name in STATES):
                missing.append(STATES[0])
        except OSError as error:  # a path too long for the file system
            raise RunError(f"{named} is not a run that can be resumed: {error.strerror}") from None
        if missing:
            raise RunError(f"{named} is not a run that can be resumed: it has no {' and no '.join(missing)}")
        recipe = self.recipe()
        execution = (
            self._read("execution.toml", Execution.from_toml)
            if (self.path / "execution.toml").is_file()
            else Execution()
        )
        return recipe, execution, self.data()

    def recipe(self) -> Recipe:
        """What is trained; raises `RunError`."""
        recipe: Recipe = self._read("recipe.toml", Recipe.from_toml)
        return recipe

    def data(self) -> DataRecord:
        """What it is trained on; raises `RunError`."""
        data: DataRecord = self._read("data.json", DataRecord.from_json)
        return data

    def history(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, none where there is no such file yet; raises `RunError`."""
        if not (self.path / "metrics.jsonl").exists():
            return []
        rows: list[dict[str, Any]] = self._read("metrics.jsonl", _rows)
        return rows

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise RunError(f"{name} in {quoted(str(self.path))} cannot be read: {first_line(error)}") from None

    def save_state(self, values: dict[str, Any]) -> None:
        """Replace the state in one step; the one that was there becomes `state-previous.pt`."""
        import torch

        path, previous = (self.path / name for name in STATES)

        def write(partial: Path) -> None:
            torch.save(values, partial)
            if path.exists():
                path.replace(previous)

        write_whole(path, write, RunError)

    def load_state(self) -> tuple[dict[str, Any], str | None]:
        """The newest whole state, and a sentence if it is not the last; raises `RunError` where none is whole.

        No code in it is run.
        """
        reasons = []
        for name in STATES:
            try:
                values = _read_state(self.path / name)
            except RunError as error:
                reasons.append(str(error))
            else:
                done = f"epoch {values['progress']['epoch'] + 1}, step {values['progress']['step']}"
                return values, f"{'; '.join(reasons)}; going on from {name}, {done}" if reasons else None
        raise RunError(f"the run cannot be resumed: {'; '.join(reasons)}")

    def save_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write one line per epoch."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history), RunError)

    def draw_curves(self, history: list[dict[str, Any]]) -> None:
        """Draw loss and accuracy of train and val over the epochs."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, quantity, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("", " (%)"), strict=True):
            for split, colour in (("train", "#9aa5b1"), ("val", "#c2410c")):
                scale = 100 if unit else 1
                name = f"{split}_{quantity}"
                points = [(row["epoch"], row[name] * scale) for row in history if name in row]
                if points:
                    epochs, values = zip(*points, strict=True)
                    axes.plot(epochs, values, color=colour, label=split, linewidth=1.8, marker="o", markersize=2.5)
            axes.set(xlabel="epoch", ylabel=quantity + unit)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if history:
                axes.legend(frameon=False)
        write_whole(self.path / "curves.png", lambda partial: figure.savefig(partial, dpi=130), RunError)


def _rows(text: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in text.splitlines()]
    if not all(isinstance(row, dict) and row.get("epoch") == number for number, row in enumerate(rows, 1)):
        raise ValueError("its lines are not one for each epoch")
    return rows


def _read_state(path: Path) -> dict[str, Any]:
    """A state that is what was saved; raises `RunError`."""
    import torch

    from residuum.train.state import FORMAT, checksum

    if not path.is_file():
        raise RunError(f"there is no {path.name}")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(f"{path.name} is damaged ({first_line(error)})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise RunError(f"{path.name} is no training state that this version of residuum reads")
    try:
        whole = values.get("sha256") == checksum(values)
    except (TypeError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise RunError(f"{path.name} is damaged (what it holds is not what was saved)")
    return values


def refuse_existing(path: Path) -> None:
    """Raise `RunError` where something is at the place of a new run folder, but for an empty folder."""
    if _taken(path):
        raise RunError(f"{quoted(str(path))} exists already; choose another --out, or go on with it by --resume")


def _taken(path: Path) -> bool:
    try:
        return path.exists() and not (path.is_dir() and not any(path.iterdir()))
    except OSError:  # a name too long for the file system, say; making the folder will tell
        return False


def free_folder(parent: Path, data: str) -> Path:
    """The first of `parent/NAME-1`, `parent/NAME-2`, ... that is not taken."""
    name = "".join(c for c in Path(data).name if c not in "*?[]")[:100].lstrip(".-") or "run"  # of a pattern, too
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
