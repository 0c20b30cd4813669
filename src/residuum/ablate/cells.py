"""Cells: one variant of a study at one seed, each an ordinary run folder. What a study has found is read there anew.

    studies/NAME/study.toml          the study as it was last run
    studies/NAME/study.json          its name and its data: another study is refused here
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
import math
import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from residuum.ablate.results import CellResult, Status, StudyResult, Tried, Tuned, Variant
from residuum.ablate.study import METRICS, Study, recipes_of, slug, tried_recipes, words_of
from residuum.data.catalog import Catalog, scan
from residuum.errors import ConfigError, ResiduumError, RunError, quoted
from residuum.files import write_text
from residuum.train import environment
from residuum.train.recipe import Recipe, differences
from residuum.train.run import STATES, DataRecord, Run

Cost = tuple[int, int]  # parameters, and MAC of an image
FILE, TRACEBACK, ASKED, OWNER, LOCK = "cell.json", "traceback.txt", "asked.json", "study.json", "lock"


@dataclass(frozen=True)
class Cell:
    """A recipe at a seed, and all variants of the study that it stands for; `identity` is the key but for the code.

    One that only helps to choose values looks at no test image; it stands for variants with what is tried for them.
    """

    key: str
    identity: str
    variants: tuple[str, ...]
    seed: int
    recipe: Recipe
    folder: Path
    choosing: bool = False

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
    any moment is balanced, and a machine that grows slower does so for all alike. Where values are tuned, `tried` has
    each variant's recipe with each combination, and `recipes` only of those variants for which the choice is made.
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
    tried: Mapping[str, tuple[tuple[Recipe, Cost], ...]] = field(default_factory=dict)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells whose recipe is known, in the order in which they are run."""
        return self.cells_of(self.recipes, self.study.question.seeds)

    @cached_property
    def usual(self) -> Recipe:
        """What is trained on this data where nothing else is said."""
        return Recipe.default(self.catalog)

    @cached_property
    def choosing(self) -> tuple[Cell, ...]:
        """All cells that values are tuned by, in the order in which they are run."""
        tuning = self.study.tuning
        return () if tuning is None else self.cells_of(self._tried_by_name(), tuning.seeds, choosing=True)

    def _tried_by_name(self) -> dict[str, Recipe]:
        assert self.study.tuning is not None
        combinations = self.study.tuning.combinations
        return {
            tried_name(variant, values): recipe
            for variant, each in self.tried.items()
            for values, (recipe, _) in zip(combinations, each, strict=True)
        }

    def cells_of(
        self, recipes: Mapping[str, Recipe], seeds: Sequence[int], *, choosing: bool = False
    ) -> tuple[Cell, ...]:
        """Recipes by name at seeds, in the order in which they are run; those of one key are one cell."""
        names = list(recipes)
        places = self._places()
        found: list[Cell] = []
        for block, seed in enumerate(seeds if names else ()):
            turn = block % len(names)
            by_key: dict[str, Cell] = {}
            for name in names[turn:] + names[:turn]:
                recipe = recipes[name].replace(seed=seed)
                identity = self._digest(recipe)
                key = _sha({"identity": identity, "code": self.code, "torch": self.torch})
                others = by_key[key].variants if key in by_key else ()
                alike = tuple(other for other in names if other in (*others, name))
                folder = places.get(key) or self.folder / "cells" / f"{slug(alike[0])}-s{seed}-{key[:8]}"
                by_key[key] = Cell(key, identity, alike, seed, recipe, folder, choosing)
            found += by_key.values()
        return tuple(found)

    def whose(self, cell: Cell) -> tuple[str, ...]:
        """The variants that a cell belongs to, also one that values are tuned by."""
        if not cell.choosing or self.study.tuning is None:
            return cell.variants
        combinations = self.study.tuning.combinations
        return tuple(v for v in self.tried if any(tried_name(v, values) in cell.variants for values in combinations))

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


def tried_name(variant: str, values: Mapping[str, Any]) -> str:
    """What a variant with a combination of tuned values is called."""
    return f"{variant}, {words_of(values)}"


def lay_out(study: Study, folder: Path | None = None) -> Plan:
    """All variants built and costed. Raises `ResiduumError`, which names the variant that cannot be; nothing is run.

    Where values are tuned, those that the folders decide by now are in their variants' recipes.
    """
    import torch

    from residuum.devices import choose_precision, pick_device

    catalog = scan(str(study.base.get("data.path", "digits")))
    recipes, variants = recipes_of(study, catalog), []
    untried, tried = tried_recipes(study, catalog), {}
    device = pick_device(study.running.device)
    costs: dict[Any, Cost] = {}
    for named in study.variants:
        name = named.name
        recipes[name], cost = checked(recipes[name], catalog, study, costs, f"variant {quoted(name)}")
        variants.append(Variant(name, named.levels, named.changes, *cost))
        if study.tuning is not None:
            whats = [f"variant {quoted(name)} with {words_of(values)}" for values in study.tuning.combinations]
            pairs = zip(untried[name], whats, strict=True)
            tried[name] = tuple(checked(recipe, catalog, study, costs, what) for recipe, what in pairs)
    plan = Plan(
        study,
        folder or Path("studies") / study.question.name,
        catalog,
        tuple(variants),
        recipes,
        environment.code_digest(),
        torch.__version__,
        device.type,
        choose_precision("auto", device)[0],
        tried,
    )
    return settled(plan)


def checked(recipe: Recipe, catalog: Catalog, study: Study, costs: dict[Any, Cost], what: str) -> tuple[Recipe, Cost]:
    """A recipe as its cells have it, and its parameters and MAC, of which `costs` keeps those of each network.

    Raises `ConfigError` that says of `what` why it cannot be trained.
    """
    from residuum.devices import pick_device
    from residuum.train.finetune import read_start
    from residuum.train.session import precision_for, with_norm_batch

    try:
        precision_for(recipe, catalog, pick_device(study.running.device))
        recipe, _ = read_start(recipe)
        if study.running.processes > 1:
            recipe = with_norm_batch(recipe, study.running.processes)
        size = recipe.data.image_size or catalog.image_size
        known = (recipe.model, size, recipe.augment.largest_size)
        if known not in costs:
            costs[known] = _cost(recipe, size)
    except ResiduumError as error:
        raise ConfigError(f"{what}: {error}") from None
    return recipe, costs[known]


def is_over(cell: Cell, record: Record) -> bool:
    """Whether a cell needs not be run: it is done, and its numbers are there, or it diverged."""
    if record.key != cell.key or record.status not in ("done", "diverged"):
        return False
    try:
        return record.status == "diverged" or bool(Run(cell.folder).history())
    except RunError:
        return False


def settled(plan: Plan) -> Plan:
    """The plan with the tuned values that the folders decide by now; variants for which they do not have no recipe."""
    tuned = _tuned(plan)
    if tuned is None or plan.study.tuning is None:
        return plan
    combinations, recipes, variants = plan.study.tuning.combinations, {}, []
    for variant in plan.variants:
        chosen = tuned.chosen(variant.name)
        if chosen:
            recipes[variant.name], (parameters, macs) = plan.tried[variant.name][combinations.index(dict(chosen))]
            variant = dataclasses.replace(variant, parameters=parameters, macs=macs)  # noqa: PLW2901
        variants.append(variant)
    return dataclasses.replace(plan, recipes=recipes, variants=tuple(variants))


def _tuned(plan: Plan) -> Tuned | None:
    """What has been tried, and the best of it for each variant of which all is done.

    That is the combination with the best mean over the seeds; the one whose loss is lower where means are the same, and
    the first of those. What diverged at a seed is worse than what did not.
    """
    tuning = plan.study.tuning
    if tuning is None:
        return None
    results: dict[tuple[str, int], CellResult] = {}
    for cell in plan.choosing:
        record = Record.read(cell.folder)
        for name in cell.variants:
            results[name, cell.seed] = dataclasses.replace(_result(plan, cell.folder, record, None, cell), variant=name)
    tried: list[Tried] = []
    for variant in plan.tried:
        mine: list[Tried] = []
        ranks = []
        for values in tuning.combinations:
            cells = [results[tried_name(variant, values), seed] for seed in tuning.seeds]
            found = {cell.seed: cell.metrics[tuning.metric] for cell in cells if tuning.metric in cell.metrics}
            diverged = sum(cell.status == "diverged" for cell in cells)
            mine.append(Tried(variant, values, found, diverged))
            losses = [cell.metrics["val_loss"] for cell in cells if "val_loss" in cell.metrics]
            sign = 1 if tuning.metric == "val_loss" else -1
            ranks.append((diverged, sign * _mean(found.values()), _mean(losses)))
        if all(len(one.found) + one.diverged == len(tuning.seeds) for one in mine):
            best = ranks.index(min(ranks))
            mine[best] = dataclasses.replace(mine[best], chosen=True)
        tried += mine
    return Tuned(tuning.metric, tuning.seeds, tuple(tried), tuple(results.values()))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.inf


def _cost(recipe: Recipe, size: tuple[int, int]) -> Cost:
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
        record = Record.read(cell.folder)
        cells += [_result(plan, cell.folder, record, variants[name], cell) for name in cell.variants]
    for name in variants.keys() - plan.recipes.keys():  # its values are not chosen yet
        cells += [CellResult(name, seed, "", "waiting") for seed in question.seeds]
    cells.sort(key=lambda cell: (question.seeds.index(cell.seed), [*variants].index(cell.variant)))
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
        tuned=_tuned(plan),
        about=about(plan),
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
        command=repeats(plan, folder, None if cell is None else cell.recipe),
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


def repeats(plan: Plan, folder: Path, recipe: Recipe | None = None) -> str:
    """The line that trains a cell again by itself, as it was.

    A file cannot say that a field has no value, so the line says it where the data would give it one.
    """
    processes = plan.study.running.processes
    line = ["torchrun", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    line += ["residuum", "train", "--recipe", str(folder / "recipe.toml"), "--out", f"runs/{folder.name}"]
    if plan.study.running.device != "auto":
        line += ["--device", plan.study.running.device]
    if recipe is not None:
        none = [name for name, (_, own) in differences(plan.usual, recipe).items() if own is None]
        line += [word for name in none for word in (f"--{name.replace('_', '-')}", "None")]
    threads = f"OMP_NUM_THREADS={threads_of(plan.study)} " if plan.device == "cpu" else ""
    return threads + shlex.join(line)


def threads_of(study: Study) -> int:
    """Threads of each process of a cell on the CPU: as asked, or its share of the cores that this process may use."""
    import psutil

    if study.running.threads is not None:
        return study.running.threads
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, cores // (study.running.workers * study.running.processes))


def about(plan: Plan) -> dict[str, str]:
    """With what it is done: the study file and the line, versions, machine."""
    from residuum import __version__
    from residuum.devices import processor

    return {
        "study": plan.study.text,
        "command": plan.study.line,
        "data": f"{plan.catalog.name}, {plan.catalog.digest}",
        "residuum": __version__,
        "code": plan.code,
        "torch": plan.torch,
        "python": platform.python_version(),
        "processor": processor(),
        "device": plan.device,
        "threads": str(threads_of(plan.study)),
        "workers": str(plan.study.running.workers),
        "processes": str(plan.study.running.processes),
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
    note_owner(plan)
    line = f"# {plan.study.line}\n" if plan.study.line else ""
    write_text(plan.folder / "study.toml", line + plan.study.text, RunError)


def note_owner(plan: Plan) -> None:
    """Write down whose folder it is; raises `RunError`."""
    write_text(plan.folder / OWNER, json.dumps(_owner(plan)) + "\n", RunError)


def _owner(plan: Plan) -> dict[str, str]:
    """What makes a study this one, whatever else of it is changed."""
    return {"name": plan.study.question.name, "data": Path(plan.catalog.name).name}


def refuse_other_study(plan: Plan) -> None:
    """Raise `RunError` where the folder holds another study, or something else."""
    place, own = quoted(str(plan.folder)), _owner(plan)
    try:
        there = sorted(path.name for path in plan.folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"the study's folder {place} cannot be read: {error.strerror}") from None
    try:
        found = json.loads((plan.folder / OWNER).read_text(encoding="utf-8"))
        other = {name: str(found[name]) for name in own}
    except FileNotFoundError:
        if there and not {"cells", LOCK} & {*there}:
            raise RunError(f"{place} is not empty and holds no study; give another --out") from None
        return
    except (OSError, ValueError, TypeError, KeyError):
        raise RunError(f"{OWNER} in {place} cannot be read; give another --out") from None
    if other != own:
        raise RunError(
            f"{place} holds the study {quoted(other['name'])} of {quoted(other['data'])}, and this one is "
            f"{quoted(own['name'])} of {quoted(own['data'])}; give another name or --out"
        )


def free_of_states(folder: Path, keep: str) -> None:
    """Remove from a finished cell what only going on needs, and its weights unless they are kept."""
    for name in (*STATES, *(() if keep == "weights" else ("weights.safetensors", "best.safetensors"))):
        (folder / name).unlink(missing_ok=True)
