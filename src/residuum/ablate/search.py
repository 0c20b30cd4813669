"""Search: values of fields that do well on the validation split, by Optuna. What it finds is no evidence.

    searches/NAME/trials.jsonl       what was tried, a line a trial, in order
    searches/NAME/cells/             a run folder for each trial and seed
    searches/NAME/report.html, ...   what was found

A trial is a recipe with other values; its cells are those of any study. What is known is read from the folders, so a
search is gone on with by its own line. No cell looks at a test image.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from residuum.ablate.cells import Cell, Plan, Record, checked, is_over, note_owner, refuse_other_study
from residuum.ablate.results import Status, Variant
from residuum.ablate.runner import Outcome, Parent, Queue, claimed
from residuum.ablate.study import (
    TUNING_SEEDS,
    Question,
    Running,
    Study,
    full_name,
    recipe_of,
    refuse_without_val,
    values_of,
)
from residuum.data.catalog import scan
from residuum.errors import ConfigError, ResiduumError, RunError, quoted
from residuum.extras import need
from residuum.files import write_text
from residuum.report.charts import PALETTE, Chart, Line, Point, line_chart, scatter_chart
from residuum.report.page import Card, Page, Section, html
from residuum.report.tables import Table, markdown
from residuum.train.processes import Stop
from residuum.train.recipe import Recipe
from residuum.train.run import Run
from residuum.units import counted

SEEDS = TUNING_SEEDS + 10**6  # the first seed of a search: a study that confirms what it found has others
TRIALS = "trials.jsonl"
_TRIES = 100  # proposals in a row that no network can be made of
Sampler = Literal["tpe", "qmc"]


@dataclass(frozen=True)
class Range:
    """The values that a field may take: between two numbers, evenly or evenly in their logarithms, or from a list."""

    field: str
    kind: Literal["log", "uniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def distribution(self) -> Any:
        """As Optuna has it."""
        kinds = need("optuna.distributions", extra="ablate")
        if self.kind == "choice":
            return kinds.CategoricalDistribution(self.choices)
        if self.kind == "int":
            return kinds.IntDistribution(int(self.low), int(self.high))
        return kinds.FloatDistribution(self.low, self.high, log=self.kind == "log")

    def holds(self, value: Any) -> bool:
        """Whether a value is of the range."""
        if self.kind == "choice":
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def at(self, share: float) -> Any:
        """The value at a share of the range, from 0 to below 1."""
        if self.kind == "choice":
            return self.choices[int(share * len(self.choices))]
        if self.kind == "int":
            return int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
        if self.kind == "log":
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


def read_range(words: str) -> Range:
    """`lr=log(0.01,1)`, `dropout=uniform(0,0.5)`, `epochs=int(5,20)` or `flip=none,random`; raises `ConfigError`."""
    name, sign, rest = words.partition("=")
    if not sign or not rest:
        raise ConfigError(
            f"--search is {quoted(words)}; it must be FIELD=log(LOW,HIGH), uniform, int, or FIELD=A,B,..."
        )
    found = re.fullmatch(r"(log|uniform|int)\(([^,()]+),([^,()]+)\)", rest.replace(" ", ""))
    if found is None:
        choices = tuple(values_of(rest))
        if "(" in rest or len(choices) < 2 or any(isinstance(choice, list) for choice in choices):
            raise ConfigError(
                f"--search is {quoted(words)}; it must be FIELD=log(LOW,HIGH), uniform(LOW,HIGH) or int(LOW,HIGH), or "
                "two values or more"
            )
        return Range(full_name(name), "choice", choices=choices)
    kind: Any = found[1]
    try:
        low, high = (float(int(word)) if kind == "int" else float(word) for word in (found[2], found[3]))
    except ValueError:
        raise ConfigError(f"--search is {quoted(words)}; {kind} takes two numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (kind != "log" or low > 0)):
        above = " above 0" if kind == "log" else ""
        raise ConfigError(f"--search is {quoted(words)}; {kind} takes two numbers{above}, the smaller one first")
    return Range(full_name(name), kind, low, high)


@dataclass(frozen=True)
class Search:
    """What is searched and how: the recipe's fields that stay, ranges, trials, seeds of each trial."""

    name: str
    base: Mapping[str, Any]
    ranges: tuple[Range, ...]
    trials: int
    seeds: int = 1
    metric: str = "val_accuracy"
    sampler: Sampler = "tpe"
    running: Running = Running()  # noqa: RUF009 (frozen)
    line: str = ""

    def __post_init__(self) -> None:
        if self.metric not in ("val_accuracy", "val_loss"):
            raise ConfigError(f"a search goes by val_accuracy or val_loss, and --metric is {quoted(self.metric)}")
        fields = [one.field for one in self.ranges]
        twice = [name for name in fields if fields.count(name) > 1 or name in ("seed", "data.path")]
        if twice:
            raise ConfigError(f"--search names {twice[0]}, which is given twice or is no field to search")

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric == "val_accuracy"


@dataclass(frozen=True)
class Trial:
    """What was tried, and the mean of the metric over its seeds where all are done; the worst if one diverged."""

    number: int
    values: Mapping[str, Any]
    status: Status
    value: float | None = None
    seconds: float = 0.0


def lay_out_search(search: Search, folder: Path | None = None) -> Plan:
    """A plan without a cell, for a search whose every range can be tried at both ends. Raises `ResiduumError`."""
    import torch

    from residuum.devices import choose_precision, pick_device
    from residuum.train import environment

    question = Question(search.name, "list", tuple(range(SEEDS, SEEDS + search.seeds)), search.metric)
    study = Study(question, search.running, search.base, (), line=search.line)
    catalog = scan(str(search.base.get("data.path", "digits")))
    device = pick_device(search.running.device)
    plan = Plan(
        study, folder or Path("searches") / search.name, catalog, (), {}, environment.code_digest(), torch.__version__,
        device.type, choose_precision("auto", device)[0],
    )  # fmt: skip
    recipe, cost = checked(recipe_of(search.base, {}, catalog), catalog, study, {}, "the recipe")
    refuse_without_val(recipe, catalog, search.metric, "the recipe")
    for one in search.ranges:
        for value in one.choices if one.kind == "choice" else (one.at(0.0), one.at(1 - 1e-9)):
            values = {other.field: other.at(0.0) for other in search.ranges} | {one.field: value}
            try:
                recipe_of(search.base, values, catalog)
            except ResiduumError as error:
                raise ConfigError(f"with {one.field} = {value}: {error}") from None
    return replace(plan, variants=(Variant("base", {}, {}, *cost),))


class Proposed(Queue):
    """Cells of trials that a sampler proposes as workers become free."""

    def __init__(self, plan: Plan, search: Search) -> None:
        self._plan, self._search = plan, search
        self._tried = _read_trials(plan.folder, search)
        self._costs: dict[Any, tuple[int, int]] = {}
        self._known: dict[int, tuple[Cell, ...]] = {}
        self._ready: list[Cell] = []
        self._running: set[str] = set()
        self.total = search.trials * search.seeds
        for number, values in enumerate(self._tried[: search.trials]):
            self._ready += self._missing(number, values)

    def take(self, busy: int) -> Cell | None:
        """The next cell; a new trial is proposed by what is known now."""
        while not self._ready and len(self._tried) < self._search.trials:
            values = self._propose()
            self._tried.append(values)
            self._plan.folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(each) + "\n" for each in self._tried)
            write_text(self._plan.folder / TRIALS, lines, RunError)
            self._ready += self._missing(len(self._tried) - 1, values)
        for place, cell in enumerate(self._ready):
            if not (self._plan.begin(cell).alone and busy):
                self._running.add(cell.key)
                return self._ready.pop(place)
        return None

    def back(self, cell: Cell) -> None:
        """A cell that was taken and not begun."""
        self._running.discard(cell.key)
        self._ready.insert(0, cell)

    def ended(self, cell: Cell, status: str) -> None:
        """A cell that has ended is read from its folder."""
        self._running.discard(cell.key)

    def trials(self) -> list[Trial]:
        """What is known of every trial."""
        return [self._trial(number, values) for number, values in enumerate(self._tried[: self._search.trials])]

    def cells(self) -> list[Cell]:
        """Those of all trials."""
        numbered = enumerate(self._tried[: self._search.trials])
        return [cell for number, values in numbered for cell in self._cells(number, values)]

    def _cells(self, number: int, values: Mapping[str, Any]) -> tuple[Cell, ...]:
        if number not in self._known:
            recipes, seeds = {f"trial {number}": self._recipe(values)}, self._plan.study.question.seeds
            self._known[number] = self._plan.cells_of(recipes, seeds, choosing=True)
        return self._known[number]

    def _recipe(self, values: Mapping[str, Any]) -> Recipe:
        recipe = recipe_of(self._search.base, values, self._plan.catalog)
        return checked(recipe, self._plan.catalog, self._plan.study, self._costs, "a trial")[0]

    def _missing(self, number: int, values: Mapping[str, Any]) -> list[Cell]:
        found = []
        for cell in self._cells(number, values):
            record = self._plan.begin(cell)
            often = record.failures > self._plan.study.running.retries
            if not is_over(cell, record) and not often and cell.key not in self._running:
                found.append(cell)
        return found

    def _trial(self, number: int, values: Mapping[str, Any]) -> Trial:
        found, seconds, statuses = [], 0.0, set()
        for cell in self._cells(number, values):
            record = Record.read(cell.folder)
            known = record is not None and record.key == cell.key
            status = "waiting" if record is None or not known else record.status
            rows = Run(cell.folder).history() if status == "done" else []
            if status == "done" and not rows:
                status = "waiting"
            statuses.add(status)
            seconds += sum(row.get("seconds", 0.0) for row in rows)
            found += [float(rows[-1][self._search.metric])] if rows else []
        worst = 0.0 if self._search.higher else math.inf
        order: tuple[Status, ...] = ("waiting", "failed", "diverged")
        for state in order:
            if state in statuses:
                return Trial(number, values, state, worst if state == "diverged" else None, seconds)
        return Trial(number, values, "done", mean(found), seconds)

    def _propose(self) -> dict[str, Any]:
        """The next trial's values; those of which no recipe can be made are passed over, and the sampler is told."""
        if self._search.sampler == "qmc":
            return self._place(len(self._tried))
        optuna = need("optuna", extra="ablate")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        space = {one.field: one.distribution() for one in self._search.ranges}
        states = optuna.trial.TrialState
        kinds = {"done": states.COMPLETE, "diverged": states.COMPLETE, "failed": states.FAIL, "waiting": states.RUNNING}
        # The sampler's draws are a function of the trial's number, so that going on proposes nothing twice.
        sampler = optuna.samplers.TPESampler(
            seed=len(self._tried), n_startup_trials=max(10, 2 * len(space)), constant_liar=True, multivariate=True
        )  # fmt: skip
        study = optuna.create_study(direction="maximize" if self._search.higher else "minimize", sampler=sampler)
        for trial in self.trials():
            study.add_trial(
                optuna.trial.create_trial(
                    state=kinds[trial.status], params=dict(trial.values), distributions=space, value=trial.value
                )
            )
        for _ in range(_TRIES):
            asked = study.ask(space)
            try:
                self._recipe(asked.params)
            except ResiduumError:
                study.tell(asked, state=states.FAIL)
                continue
            return dict(asked.params)
        raise RunError(f"{_TRIES} proposals in a row are no recipe; give --search other ranges")

    def _place(self, number: int) -> dict[str, Any]:
        """The place of that number in Sobol's sequence, which fills a space evenly; without what cannot be trained."""
        sobol = need("scipy.stats", extra="stats").qmc.Sobol(len(self._search.ranges), scramble=True, rng=0)
        found, tries = -1, 2 ** math.ceil(math.log2(number + _TRIES + 1))
        for point in sobol.random(tries):
            values = {one.field: one.at(float(share)) for one, share in zip(self._search.ranges, point, strict=True)}
            try:
                self._recipe(values)
            except ResiduumError:
                continue
            found += 1
            if found == number:
                return values
        raise RunError("too few places in the ranges of --search are recipes; give it others")


def run_search(
    plan: Plan, search: Search, say: Callable[[str], None] = lambda text: None, *, trainer: str | None = None
) -> tuple[list[Trial], Outcome]:
    """Run what is missing of a search, as `runner.run` runs a study; what every trial came to. Raises `RunError`."""
    refuse_other_study(plan)
    with claimed(plan.folder) as lock:
        note_owner(plan)
        proposed, stop = Proposed(plan, search), Stop()
        with stop.listening():
            parent = Parent(plan, proposed, stop, say, lock=lock, trainer=trainer)
            finished = parent.run()
        cells = proposed.cells()
        failed = tuple(cell for cell in cells if plan.begin(cell).status == "failed")
        return proposed.trials(), Outcome(finished, failed, stop.signal)


def _read_trials(folder: Path, search: Search) -> list[dict[str, Any]]:
    """What was tried before; raises `RunError` where it is not from these ranges."""
    try:
        lines = (folder / TRIALS).read_text(encoding="utf-8").splitlines()
        found = [dict(json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{TRIALS} in {quoted(str(folder))} cannot be read: {error}; give another --out") from None
    for values in found:
        fits = values.keys() == {one.field for one in search.ranges}
        if not fits or not all(one.holds(values[one.field]) for one in search.ranges):
            raise RunError(f"the search in {quoted(str(folder))} had other ranges; give them again, or another --out")
    return found


# -- report ------------------------------------------------------------------------------------------------------------


def ranked(search: Search, trials: Sequence[Trial]) -> list[Trial]:
    """Those that are done, the best first."""
    done = [trial for trial in trials if trial.status == "done" and trial.value is not None]
    return sorted(done, key=lambda trial: -trial.value if search.higher else trial.value)  # type: ignore[operator,arg-type,return-value]


def confirming(search: Search, best: Trial) -> str:
    """The file of a study that compares what a search found with what there was, with seeds of its own."""
    import tomli_w

    base: dict[str, Any] = {}
    for name, value in search.base.items():
        section, _, inner = name.partition(".")
        if value is not None:
            (base.setdefault(section, {}) if inner else base)[inner or section] = value
    found = {name: value for name, value in best.values.items() if value is not None}
    variants = {"before": {}, "found": found}
    return tomli_w.dumps({"design": "list", "seeds": 8, "base": base, "variant": variants})


def write_search(search: Search, trials: Sequence[Trial], folder: Path, about: Mapping[str, str]) -> None:
    """`report.html`, `report.md` and `results.csv` in the search's folder; raises `RunError`."""
    page = search_page(search, trials, about)
    parts = [f"# {page.title}", page.about, *(f"- {card.label}: {card.value}. {card.note}" for card in page.cards)]
    for section in page.sections:
        parts += [f"## {section.title}", section.text, *(markdown(one) for one in section.tables)]
    write_text(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n", RunError)
    write_text(folder / "report.html", html(page), RunError)
    file, fields = StringIO(), [one.field for one in search.ranges]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "status", *fields, search.metric, "seconds"])
    for trial in trials:
        value = "" if trial.value is None else repr(trial.value)
        writer.writerow([trial.number, trial.status, *(trial.values[name] for name in fields), value, trial.seconds])
    write_text(folder / "results.csv", file.getvalue(), RunError)


def search_table(search: Search, trials: Sequence[Trial], most: int | None = None) -> Table:
    """Trials that are done, the best first, then the others."""
    order = ranked(search, trials)
    order = (order + [trial for trial in trials if trial not in order])[:most]
    rows = tuple(
        (f"{trial.number}", *(_shown(value) for value in trial.values.values()),
         trial.status if trial.status != "done" else _value(search, trial), f"{trial.seconds:.1f}")
        for trial in order
    )  # fmt: skip
    fields = [one.field for one in search.ranges]
    unit = " (%)" if search.higher else ""
    headings = ("trial", *fields, search.metric.replace("_", " ") + unit, "seconds")
    return Table(f"{search.name}: search, not evidence", headings, rows, _CAUTION, ("seconds",))


_CAUTION = (
    "Search, not evidence: the best of many trials looks better than it is, on the images that it was chosen by. "
    "Compare it with what you had by a study, whose seeds and test images no trial has seen."
)


def search_page(search: Search, trials: Sequence[Trial], about: Mapping[str, str]) -> Page:
    """The search as a page."""
    order, metric = ranked(search, trials), search.metric.replace("_", " ")
    scale, unit = (100, " (%)") if search.higher else (1, "")
    charts: list[Chart] = []
    for one in search.ranges if order else ():
        numeric = one.kind != "choice"
        if not numeric:
            continue
        log = one.kind == "log"
        points = [
            Point("", _place_on(t.values[one.field], log), scale * (t.value or 0), PALETTE[0]) for t in order
        ]  # fmt: skip
        points[0] = replace(points[0], name="best", colour=PALETTE[1])
        label = f"log10 of {one.field}" if log else one.field
        said = f"The best of {len(order)} trials is at {_shown(order[0].values[one.field])}."
        title = f"{metric} over {one.field}"
        charts.append(scatter_chart(title, points, x=label, y=metric + unit, zero=False, description=said))
    if len(order) > 1:
        so_far: list[tuple[float, float]] = []
        for trial in sorted(order, key=lambda trial: trial.number):
            value = scale * (trial.value or 0)
            best = value if not so_far else (max if search.higher else min)(so_far[-1][1], value)
            so_far.append((float(trial.number), best))
        said = f"From {so_far[0][1]:.4g} to {so_far[-1][1]:.4g}."
        lines = [Line("best so far", so_far, PALETTE[0])]
        charts.append(line_chart("Best so far", lines, x="trial", y=metric + unit, description=said))
    cards = []
    if order:
        values = ", ".join(f"{name} = {_shown(value)}" for name, value in order[0].values.items())
        cards.append(Card("best trial", _value(search, order[0]), f"{metric}{unit}; {values}"))
    text = (
        f"{_CAUTION} Each trial is trained with {counted(search.seeds, 'seed')} that no study has by "
        f"itself, and judged by {metric} after the last epoch. No trial looked at a test image. Values were proposed "
        f"by {'a tree of Parzen estimators (Optuna)' if search.sampler == 'tpe' else 'a scrambled Sobol sequence'}."
    )
    counts = f"{len(order)} of {search.trials} trials are done."
    sections = [Section("What was tried", text, tuple(charts), (search_table(search, trials),))]
    if order:
        asked = "This study file compares what was found with what there was before, over seeds, on the test split."
        sections.append(Section("How to find out whether it helps", asked, listing=confirming(search, order[0])))
    title, about_it = f"Search {search.name}", f"Search, not evidence. {counts}"
    return Page(title, about_it, search.line, dict(about), tuple(cards), tuple(sections))


def _place_on(value: float, log: bool) -> float:
    return math.log10(value) if log else float(value)


def _value(search: Search, trial: Trial) -> str:
    assert trial.value is not None
    return f"{100 * trial.value:.2f}" if search.higher else f"{trial.value:.4f}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
