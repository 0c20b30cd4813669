"""Cells: one variant of a study at one seed, each an ordinary run folder. What a study has found is read there anew.

    studies/NAME/study.toml          the study as it was last run
    studies/NAME/asked.json          the seeds that were asked for, each time that they were others
    studies/NAME/cells/SLUG-sSEED-KEY8/
        recipe.toml, metrics.jsonl, ...  as `residuum train` leaves them
        cell.json                    key, how it ended, and which test images were right
        traceback.txt                of what failed

A cell's key is a digest of all that decides what comes out: recipe, data, seed, the package's code, torch. A cell of
another key is another cell.
"""

import dataclasses
import hashlib
import json
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from residuum.ablate.results import CellResult, Status, StudyResult, Variant
from residuum.ablate.study import METRICS, Study, recipes_of, slug
from residuum.data.catalog import Catalog, scan
from residuum.errors import ConfigError, ResiduumError, RunError, quoted
from residuum.files import write_text
from residuum.train import environment
from residuum.train.recipe import Recipe
from residuum.train.run import STATES, DataRecord, Run

FILE, TRACEBACK, ASKED = "cell.json", "traceback.txt", "asked.json"


@dataclass(frozen=True)
class Cell:
    """A recipe at a seed, and all variants of the study that it stands for; `identity` is the key but for the code."""

    key: str
    identity: str
    variants: tuple[str, ...]
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """As messages have it."""
        return f"{' and '.join(self.variants)}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """`cell.json`: whose cell it is, with what it was computed, and how it ended.

    `correct` has a 1 for each image of the `split` that was right and a 0 for each other, in the data's order.
    """

    key: str
    identity: str
    variant: str
    seed: int
    code: str
    torch: str
    status: Status = "waiting"
    failures: int = 0
    reason: str = ""
    alone: bool = False  # it ran out of memory: other cells are not run beside it again
    begun: str = ""
    ended: str = ""
    machine: str = ""
    threads: int = 0
    weights: str = ""
    split: str = ""
    correct: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of a folder, None where it has none that can be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Raises `RunError`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{quoted(str(folder))} cannot be made: {error.strerror}") from None
        write_text(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n", RunError)


@dataclass(frozen=True)
class Plan:
    """A study with all that follows from it before anything runs: data, variants with their cost, cells.

    Cells come seed by seed, and within a seed each variant has another place than in the seed before: what is done at
    any moment is balanced, and a machine that grows slower does so for all alike.
    """

    study: Study
    folder: Path
    catalog: Catalog
    variants: tuple[Variant, ...]
    recipes: Mapping[str, Recipe]
    code: str
    torch: str
    device: str
    precision: str

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order in which they are run."""
        names = [variant.name for variant in self.variants]
        places = self._places()
        found: list[Cell] = []
        for block, seed in enumerate(self.study.question.seeds):
            turn = block % len(names)
            by_key: dict[str, Cell] = {}
            for name in names[turn:] + names[:turn]:
                recipe = self.recipes[name].replace(seed=seed)
                identity = self._digest(recipe)
                key = _sha({"identity": identity, "code": self.code, "torch": self.torch})
                others = by_key[key].variants if key in by_key else ()
                alike = tuple(other for other in names if other in (*others, name))
                folder = places.get(key) or self.folder / "cells" / f"{slug(alike[0])}-s{seed}-{key[:8]}"
                by_key[key] = Cell(key, identity, alike, seed, recipe, folder)
            found += by_key.values()
        return tuple(found)

    def _digest(self, recipe: Recipe) -> str:
        """Of a recipe that is as a run writes it down, and of the data: not of where they lie."""
        fields = recipe.to_dict()
        fields |= {"norm_batch": recipe.norm_batch or recipe.batch_size}
        if recipe.precision == "auto":
            fields["precision"] = self.precision
        del fields["data.path"]
        if recipe.finetune.sha256 is not None:
            del fields["finetune.weights"]
        data = DataRecord.of(self.catalog)
        return _sha({"recipe": fields, "data": data.digest, "classes": data.classes, "device": self.device})

    def _places(self) -> dict[str, Path]:
        """Key to folder, of the cells that are there under whatever variant's name."""
        return {record.key: folder for folder, record in self.records() if record is not None}

    def records(self) -> Iterator[tuple[Path, Record | None]]:
        """All folders of cells."""
        for folder in sorted((self.folder / "cells").glob("*-s*-*")):
            if folder.is_dir():
                yield folder, Record.read(folder)

    def begin(self, cell: Cell) -> Record:
        """What is on record of a cell, or a new record."""
        found = Record.read(cell.folder)
        if found is not None and found.key == cell.key:
            return found
        return Record(cell.key, cell.identity, cell.variants[0], cell.seed, self.code, self.torch)


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def lay_out(study: Study, folder: Path | None = None) -> Plan:
    """All variants built and costed. Raises `ResiduumError`, which names the variant that cannot be; nothing is run."""
    import torch

    from residuum.devices import choose_precision, pick_device
    from residuum.train.finetune import read_start

    catalog = scan(str(study.base.get("data.path", "digits")))
    recipes, variants = recipes_of(study, catalog), []
    device = pick_device(study.running.device)
    costs: dict[Any, tuple[int, int]] = {}
    for named in study.variants:
        recipe = recipes[named.name]
        try:
            choose_precision(recipe.precision, device)
            recipes[named.name], weights = read_start(recipe)
            del weights
            size = recipe.data.image_size or catalog.image_size
            known = (recipe.model, size, recipe.augment.largest_size)
            if known not in costs:
                costs[known] = _cost(recipe, size)
        except ResiduumError as error:
            raise ConfigError(f"variant {quoted(named.name)}: {error}") from None
        variants.append(Variant(named.name, named.levels, named.changes, *costs[known]))
    return Plan(
        study,
        folder or Path("studies") / study.question.name,
        catalog,
        tuple(variants),
        recipes,
        environment.code_digest(),
        torch.__version__,
        device.type,
        choose_precision("auto", device)[0],
    )


def _cost(recipe: Recipe, size: tuple[int, int]) -> tuple[int, int]:
    """Parameters, and MAC of one image; raises `ConfigError` for images too small for the network, in training too."""
    from residuum.cost import cost

    images = 2  # a norm in training has no statistics of one value
    parts = cost(recipe.model, size, images, by_layer=False)
    if recipe.augment.largest_size is not None:
        cost(recipe.model, recipe.augment.largest_size, images, by_layer=False)
    return sum(part.parameters for part in parts), sum(part.macs for part in parts) // images


# -- what has been found -----------------------------------------------------------------------------------------------


def collect(plan: Plan) -> StudyResult:
    """What the folders say now. Nothing is remembered elsewhere; raises `RunError` for a folder that cannot be read."""
    question = plan.study.question
    variants = {variant.name: variant for variant in plan.variants}
    cells, keys, identities = [], set(), set()
    for cell in plan.cells:
        keys.add(cell.key)
        identities.add(cell.identity)
        for name in cell.variants:
            record = Record.read(cell.folder)
            cells.append(_result(plan, cell.folder, record, variants[name], cell))
    older = [
        _result(plan, folder, record, variants.get(record.variant), None)
        for folder, record in plan.records()
        if record is not None and record.identity in identities and record.key not in keys
    ]
    asked = read_asked(plan.folder)
    return StudyResult(
        name=question.name,
        design=question.design,
        base=plan.variants[0].name,
        metric=question.metric,
        variants=plan.variants,
        cells=tuple(cells),
        seeds=question.seeds,
        also=question.also,
        margin=plan.study.margin,
        extended=any(set(before) < set(question.seeds) for before in asked),
        looks=question.looks,
        older=tuple(older),
        about=_about(plan),
    )


def _result(plan: Plan, folder: Path, record: Record | None, variant: Variant | None, cell: Cell | None) -> CellResult:
    """One cell as its folder has it; a folder that is not whole has a cell that is still to be run."""
    rows: Sequence[Mapping[str, Any]] = ()
    status: Status = "waiting" if record is None else record.status
    if record is not None and cell is not None and record.key != cell.key:
        record, status = None, "waiting"
    if status in ("done", "diverged"):
        try:
            rows = Run(folder).history()
        except RunError:
            rows, status = (), "waiting"
        if status == "done" and not rows:
            status = "waiting"
    name = variant.name if variant is not None else record.variant if record is not None else ""
    return CellResult(
        variant=name,
        seed=cell.seed if cell is not None else record.seed if record is not None else 0,
        key=cell.key if cell is not None else record.key if record is not None else "",
        status=status,
        metrics=_metrics(rows, record, variant) if status == "done" else {},
        weights=record.weights if record is not None else "",
        correct=tuple(bit == "1" for bit in record.correct) if record is not None and record.correct else None,
        reason=record.reason if record is not None and status in ("failed", "diverged") else "",
        command=repeats(plan, folder),
        history=tuple(rows),
    )


def _metrics(rows: Sequence[Mapping[str, Any]], record: Record | None, variant: Variant | None) -> dict[str, float]:
    """The last epoch's numbers; seconds are of all epochs."""
    found: dict[str, float] = {k: float(v) for k, v in rows[-1].items() if k in METRICS and isinstance(v, int | float)}
    found["seconds"] = sum(float(row.get("seconds", 0.0)) for row in rows)
    if record is not None:
        found |= record.measured
    if variant is not None:
        found |= {"parameters": float(variant.parameters), "macs": float(variant.macs)}
    return found


def repeats(plan: Plan, folder: Path) -> str:
    """The line that trains a cell again by itself, as it was."""
    line = ["residuum", "train", "--recipe", str(folder / "recipe.toml"), "--out", f"runs/{folder.name}"]
    if plan.study.running.device != "auto":
        line += ["--device", plan.study.running.device]
    threads = f"OMP_NUM_THREADS={threads_of(plan.study)} " if plan.device == "cpu" else ""
    return threads + shlex.join(line)


def threads_of(study: Study) -> int:
    """Threads of a cell on the CPU: as asked, or its share of the cores that this process may use."""
    import psutil

    if study.running.threads is not None:
        return study.running.threads
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, cores // study.running.workers)


def _about(plan: Plan) -> dict[str, str]:
    from residuum import __version__
    from residuum.devices import processor

    return {
        "study": plan.study.text,
        "data": f"{plan.catalog.name}, {plan.catalog.digest}",
        "residuum": __version__,
        "code": plan.code,
        "torch": plan.torch,
        "python": platform.python_version(),
        "processor": processor(),
        "device": plan.device,
        "threads": str(threads_of(plan.study)),
        "workers": str(plan.study.running.workers),
    }


def read_asked(folder: Path) -> list[list[int]]:
    """The seeds that were asked for before, each time that they were others."""
    try:
        found = json.loads((folder / ASKED).read_text(encoding="utf-8"))
        return [[int(seed) for seed in seeds] for seeds in found]
    except (OSError, ValueError, TypeError):
        return []


def note_asked(plan: Plan) -> None:
    """Write down which study is run, and over which seeds; raises `RunError`."""
    asked, seeds = read_asked(plan.folder), list(plan.study.question.seeds)
    if not asked or asked[-1] != seeds:
        write_text(plan.folder / ASKED, json.dumps([*asked, seeds]) + "\n", RunError)
    write_text(plan.folder / "study.toml", plan.study.text, RunError)


def free_of_states(folder: Path, keep: str) -> None:
    """Remove from a finished cell what only going on needs, and its weights unless they are kept."""
    for name in (*STATES, *(() if keep == "weights" else ("weights.safetensors", "best.safetensors"))):
        (folder / name).unlink(missing_ok=True)
