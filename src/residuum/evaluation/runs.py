"""Run folders side by side: finished runs in groups of one recipe over seeds, and what else is different about them.

Nothing here is computed anew and torch is not needed: a run's folder says it all.
"""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from residuum.errors import RunError, quoted
from residuum.evaluation.counts import Paired, pair
from residuum.evaluation.seeds import Difference, Mean, difference, mean_of, over_images
from residuum.train.environment import Environment
from residuum.train.environment import read as read_environments
from residuum.train.recipe import Recipe, differences
from residuum.train.run import DataRecord, Run

Split = Literal["val", "test"]
# Fields that make no other recipe: the seed, where the same files lie, and what becomes of files that are no images.
_ALIKE = ("seed", "data.path", "data.skip_bad_images")
_MODEL, _DATA = "model.", "data."


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A number of a row of metrics, None where there is none, or one that is no number."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


@dataclass(frozen=True, eq=False)
class Finished:
    """A run that went to its end: its rows of numbers, what it was trained on and with, and a digest of its weights."""

    name: str  # the end of its path
    path: Path
    recipe: Recipe
    rows: Sequence[Mapping[str, Any]]
    data: DataRecord
    environments: Sequence[Environment]
    weights: str

    @property
    def seed(self) -> int:
        """Of its recipe."""
        return self.recipe.seed

    def last(self, name: str) -> float | None:
        """A number of the last epoch, never of the best one; None where the run has none of that name."""
        return number(self.rows[-1], name)

    @property
    def seconds(self) -> float:
        """Of training, in all epochs."""
        return sum(number(row, "seconds") or 0.0 for row in self.rows)

    @property
    def images_per_second(self) -> float:
        """In training, over all epochs."""
        images = sum((number(row, "images_per_second") or 0.0) * (number(row, "seconds") or 0.0) for row in self.rows)
        return images / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Note:
    """What has to be known before a table is read: a topic and a sentence."""

    topic: str
    text: str


@dataclass(frozen=True, eq=False)
class Group:
    """One recipe on one data: its runs by seed, and in which fields it differs from the first group."""

    # what notes call it by
    letter: str
    # its runs
    runs: tuple[Finished, ...]
    # field to its value in the first group and in this one
    changes: Mapping[str, tuple[Any, Any]]
    values: Mapping[int, float]  # by seed
    # mean, deviation and interval over the seeds
    mean: Mean
    difference: Difference | None  # from the first group; None for that itself

    @property
    def described(self) -> str:
        """What is different in it; of the first, whose it is."""
        return in_short(self.changes) if self.difference is not None else f"the recipe of {self.runs[0].name}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Groups, the name of the number that is compared, and what to know before."""

    # name of the number that is compared
    number: str
    # recipes, in the order in which their runs were named
    groups: tuple[Group, ...]
    # what to know before
    notes: tuple[Note, ...]


def read_run(path: Path, name: str) -> Finished | str:
    """A finished run, which is to be called so, or why it is not finished.

    Raises `RunError` for a folder that is no run or cannot be read.
    """
    run = Run(path)
    missing = [name for name in ("recipe.toml", "data.json") if not (path / name).is_file()]
    if missing:
        raise RunError(f"{quoted(str(path))} is no run: it has no {' and no '.join(missing)}")
    recipe, rows = run.recipe(), run.history()
    done = rows[-1]["epoch"] if rows else 0
    if done < recipe.epochs:
        return f"{quoted(str(path))} is at epoch {done} of {recipe.epochs}"
    return Finished(name, path, recipe, rows, run.data(), read_environments(path), weights_digest(run.weights))


def weights_digest(path: Path) -> str:
    """Of the tensors alone, whatever else the file says; empty where there is none."""
    if not path.is_file():
        return ""
    total = hashlib.sha256()
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise RunError(f"{quoted(str(path))} is damaged")
        try:
            header = dict(json.loads(file.read(size)))
        except (ValueError, TypeError, RecursionError):
            raise RunError(f"{quoted(str(path))} is damaged") from None
        header.pop("__metadata__", None)
        total.update(json.dumps(header, sort_keys=True).encode())
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def compare(paths: Sequence[Path], split: Literal["auto", "val", "test"] = "auto") -> Comparison:
    """Finished runs by recipe, in the order in which they are named; the first one's recipe is what others differ from.

    The number is the accuracy after the last epoch on the validation split, or on the test split where not all runs
    have one. Raises `RunError`.
    """
    runs: list[Finished] = []
    notes: list[Note] = []
    known = {path.absolute(): path for path in paths}
    for path, name in zip(known.values(), names_of(list(known)), strict=True):
        found = read_run(path, name)
        if isinstance(found, str):
            notes.append(Note("left out", f"{found}: a run counts once it is finished"))
        else:
            runs.append(found)
    if not runs:
        raise RunError(f"none of these runs is finished; first: {notes[0].text}")
    compared = _compared(runs, split)
    groups = _grouped(runs, compared, notes)
    return Comparison(compared, groups, (*notes, *_notes(groups)))


def names_of(paths: Sequence[Path]) -> list[str]:
    """The ends of different absolute paths: as many of their last folders as it takes to tell all apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len({*names}) == len(names):
            return names
    return [str(path) for path in paths]


def _compared(runs: Sequence[Finished], split: str) -> str:
    """The name of the accuracy that all runs have; raises `RunError` where there is none."""
    for name in [f"{s}_accuracy" for s in ("val", "test") if split in ("auto", s)]:
        lacking = [run.name for run in runs if run.last(name) is None]
        if not lacking:
            return name
    which = "no validation and no test accuracy" if split == "auto" else f"no {split} accuracy"
    raise RunError(f"{quoted(lacking[0])} has {which} that all these runs have; compare others, or another --split")


def _grouped(runs: Sequence[Finished], compared: str, notes: list[Note]) -> tuple[Group, ...]:
    by_recipe: dict[Any, list[Finished]] = defaultdict(list)
    for run in runs:
        fields = tuple((name, value) for name, value in run.recipe.to_dict().items() if name not in _ALIKE)
        by_recipe[fields, run.data.digest].append(run)
    groups: list[Group] = []
    first: Group | None = None
    for place, members in enumerate(by_recipe.values()):
        letter = _letter(place)
        by_seed: dict[int, list[Finished]] = defaultdict(list)
        for run in members:
            by_seed[run.seed].append(run)
        for seed, same in by_seed.items():
            if len(same) > 1:
                names = ", ".join(run.name for run in same)
                notes.append(Note("again", f"{names} have one recipe and seed {seed}: their mean counts once"))
        values = {
            seed: float(np.mean([value for run in same if (value := run.last(compared)) is not None]))
            for seed, same in by_seed.items()
        }
        if first is None:
            changes: Mapping[str, tuple[Any, Any]] = {}
            gap = None
        else:
            changes = _changes(first.runs[0], members[0])
            gap = difference(first.values, values)
            if len(values) == 1 and len(first.values) == 1:
                both = _paired_images(first.runs[0], members[0], compared.partition("_")[0])
                gap = over_images(both) if both is not None else gap
        group = Group(letter, tuple(members), changes, values, mean_of(list(values.values())), gap)
        first = first or group
        groups.append(group)
    return tuple(groups)


def _letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def _changes(first: Finished, other: Finished) -> dict[str, tuple[Any, Any]]:
    found = {name: both for name, both in differences(first.recipe, other.recipe).items() if name not in _ALIKE}
    if first.data.digest != other.data.digest:
        found["data"] = (first.data.digest[:8], other.data.digest[:8])
    return found


def in_short(changes: Mapping[str, tuple[Any, Any]], most: int = 6) -> str:
    """`optimizer.lr 0.1 -> 0.2, epochs 10 -> 20`, and how many more there are."""
    words = [f"{name} {_plain(old)} -> {_plain(new)}" for name, (old, new) in changes.items()]
    more = f", {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# -- what has to be said above the table -------------------------------------------------------------------------------


def _notes(groups: Sequence[Group]) -> Iterable[Note]:
    """What differs beside the recipe, and networks that are one and the same."""
    runs = [run for group in groups for run in group.runs]
    if len({run.recipe.precision for run in runs}) > 1:
        yield Note("precision", _sides(groups, lambda run: run.recipe.precision))
    changed = next((text for run in runs if (text := runs[0].data.changed(run.data)) is not None), None)
    if changed is not None:
        sides = _sides(groups, lambda run: f"{run.recipe.data.path} ({run.data.digest[:8]})")
        yield Note("data", f"{sides}; {changed}")
    elif any(name.startswith(_DATA) for group in groups for name in group.changes):
        yield Note("data", "the splits or images are not the same for all, so that the accuracies are of other images")
    for topic, names in {
        "code": ("residuum", "code"), "libraries": ("torch", "torchvision", "python"),
        "device": ("device", "processor", "threads"),
    }.items():  # fmt: skip
        if len({_said(run, names) for run in runs}) > 1:
            yield Note(topic, _sides(groups, lambda run, names=names: _said(run, names)))  # type: ignore[misc]
    by_weights: dict[str, list[Finished]] = defaultdict(list)
    for run in runs:
        if run.weights:
            by_weights[run.weights].append(run)
    for same in by_weights.values():
        if len(same) > 1:
            yield Note("identical", f"{', '.join(run.name for run in same)} have the very same weights")


def _said(run: Finished, names: Sequence[str]) -> str:
    """Some fields of a run's environments, one after the other where they changed."""
    texts = [", ".join(str(entry.get(name, "?")) for name in names) for entry in run.environments]
    return ", then ".join(dict.fromkeys(texts)) or "not recorded"


def _sides(groups: Sequence[Group], of: Callable[[Finished], str]) -> str:
    """`bf16 in A, B; fp32 in C (digits-4)`: by group, and by run where one group has several."""
    places: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        values = [of(run) for run in group.runs]
        for value in dict.fromkeys(values):
            members = [run.name for run, other in zip(group.runs, values, strict=True) if other == value]
            places[value].append(
                group.letter if len(members) == len(values) else f"{group.letter} ({', '.join(members)})"
            )
    return "; ".join(f"{value} in {', '.join(where)}" for value, where in places.items())


# -- image by image ----------------------------------------------------------------------------------------------------


def _paired_images(first: Finished, second: Finished, split: str) -> Paired | None:
    """Two runs on the images of a split, where `residuum evaluate` left their predictions in a folder of each run."""
    one, two = (_predictions(run, split) for run in (first, second))
    if one is None or two is None or first.data.digest != second.data.digest or one.keys() != two.keys():
        return None
    rights = [np.array([side[image] for image in one], dtype=np.bool_) for side in (one, two)]
    return pair(*rights)


def _predictions(run: Finished, split: str) -> dict[str, bool] | None:
    """Image to whether it is predicted right, of the newest evaluation of a run's last weights within its folder."""
    wanted = {"split": split, "data": run.recipe.data.path, "mirrored": False, "weights_sha256": run.weights}
    for file in sorted(run.path.glob("*/evaluation.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            if any(about.get(name) != value for name, value in wanted.items()):
                continue
            with (file.parent / "predictions.csv").open(encoding="utf-8", newline="") as lines:
                return {row["image"]: row["label"] == row["class1"] for row in csv.DictReader(lines)}
        except (OSError, ValueError, KeyError, AttributeError):
            continue
    return None
