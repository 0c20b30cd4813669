"""`residuum ablate`: whether changes of a recipe help, over seeds."""

import dataclasses
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from residuum.ablate.study import Running, Study, from_flags, recipe_of
from residuum.cli.console import say, visible
from residuum.cli.line import Line, sorted_words, values_of
from residuum.data.catalog import scan
from residuum.errors import ConfigError, quoted
from residuum.extras import need
from residuum.train.recipe import NAMES, Recipe, beneath, read_recipe
from residuum.units import counted
from residuum.validation import AtLeast, Within

if TYPE_CHECKING:
    from residuum.ablate.cells import Plan
    from residuum.ablate.results import CellResult, StudyResult

Named = Annotated[str | None, tyro.conf.arg(name="model", metavar="PRESET")]


@dataclass(frozen=True)
class Ablate:
    """Find out by paired seeds whether changes of a recipe help. Run again, it goes on where it was stopped."""

    # fields of the recipe that all variants have in common
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    # study file: factors, seeds, the metric that is compared
    study: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY.toml")] = None
    # without a study file: field of the recipe and its values, the first that of the base, such as
    # model.attention=none,se,eca; given several times, all combinations are run
    vary: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE,VALUE,...", help_behavior_hint="(default: none; may be repeated)"),
    ] = ()
    # without a study file: field that is tuned for each variant alike, and the values that are tried, such as
    # lr=0.05,0.1,0.2, on images held out of training; given several times, all combinations are tried
    tune: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE,VALUE,...", help_behavior_hint="(default: none; may be repeated)"),
    ] = ()
    # without a study file: field and the range in which good values are searched by the validation split, such as
    # lr=log(0.01,1), model.dropout=uniform(0,0.5), epochs=int(5,20) or flip=none,random; given several times, together
    search: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=RANGE", help_behavior_hint="(default: none; may be repeated)"),
    ] = ()
    # number of combinations of values that a search tries
    trials: Annotated[int, AtLeast(1, 10_000)] = 40
    # how a search goes: tpe learns from what it found, qmc fills the ranges evenly
    sampler: Literal["tpe", "qmc"] = "tpe"
    # number of seeds, 0, 1, ...; more than before extend a study (default: the study's, or 5)
    seeds: Annotated[int | None, AtLeast(1)] = None
    # number that is compared (default: the study's, or test_accuracy)
    metric: str | None = None
    # smallest difference that matters, in points of an accuracy or in the metric's own unit (default: the study's)
    margin: Annotated[float | None, Within("(0, 1e9]")] = None
    # number of cells at once (default: the study's, or 1)
    workers: Annotated[int | None, AtLeast(1, 1024)] = None
    # threads of each cell on the CPU (default: the study's, or the cores shared out)
    threads: Annotated[int | None, AtLeast(1, 4096)] = None
    # number of processes that train a cell together, started by torchrun (default: the study's, or 1)
    processes: Annotated[int | None, AtLeast(1, 1024)] = None
    # run only this factor's variants, or this variant, and the base
    only: str | None = None
    # only print variants with their cost, and cells; nothing is run
    plan: bool = False
    # only print how far the study is; nothing is run
    status: bool = False
    # only write the report of what is there; nothing is run
    report: bool = False
    # address of a PostgreSQL database, postgresql://USER@HOST/DATABASE, that several machines share as a queue: start
    # the same line on each, the study's folder on a disk that all of them have
    storage: str | None = None
    # folder of the study; studies/NAME where left out
    out: Path | None = None
    # a published network in place of the one that goes with the data
    preset: Named = None
    # named recipe, or TOML file with any part of one, that the variants have in common; for a study without a file
    file: Annotated[str | None, tyro.conf.arg(name="recipe", metavar="NAME|FILE.toml")] = None
    # fields of the recipe that the line gives
    given: Annotated[tuple[str, ...], tyro.conf.Fixed, tyro.conf.Suppress] = ()
    # the study file as it was read for the defaults
    read: Annotated[Study | None, tyro.conf.Fixed, tyro.conf.Suppress] = None
    # the line itself, but for what has nothing to do with what is found
    typed: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = ""


def defaults(line: Line) -> Ablate:
    """`Ablate` with the recipe that the study file or the data named on the line decides."""
    if line.asks_help:
        return Ablate(Recipe.default())
    if "seed" in line:
        raise ConfigError("each variant is trained with each of the study's seeds; leave out --seed, or give --seeds")
    path, given = line.get("study"), {n: value for n, value in values_of(Ablate, line).items() if n in NAMES}
    study = Study.read(Path(path)) if path is not None else None
    base = dict(study.base) if study is not None else {}
    file, model = line.get("recipe"), line.get("model")
    if file is not None:
        base = read_recipe(file)
    if model is not None:
        base["model.preset"] = model
    catalog = scan(str((base | given).get("data.path", "digits")))
    return Ablate(recipe_of(base, given, catalog), given=tuple(given), read=study, typed=_typed(line))


def _typed(line: Line) -> str:
    """The line for a report: without where it is run, and whether it is."""
    kept = Line({name: words for name, words in line.given.items() if name not in _ELSEWHERE})
    flags, positionals = sorted_words(Ablate, kept)
    return shlex.join(["residuum", "ablate", *positionals, *flags])


_ELSEWHERE = ("plan", "status", "report", "only", "storage", "out")


def run(command: Ablate, console: Console) -> int:
    """Plan, run, report; 3 where cells have failed, 130 or 143 where a signal stopped it."""
    from residuum.ablate.cells import collect, lay_out, refuse_other_study, settled
    from residuum.ablate.shared import Storage

    if command.search:
        return _search(command, console)
    storage = None if command.storage is None else Storage(command.storage)
    plan = lay_out(_study(command), command.out)
    refuse_other_study(plan)
    names = _named(plan, command.only)
    if command.plan:
        _print_plan(plan, console)
        return 0
    if command.status or command.report:
        found = collect(plan)
        _print_status(plan, found, console)
        if command.report:
            _write_report(plan, found, console)
        return 0
    from residuum.ablate.report import table
    from residuum.ablate.runner import run as run_cells
    from residuum.report.tables import print_table

    need("scipy.stats", extra="stats")  # said now, not when all has been trained

    def block() -> None:
        if console.is_terminal:
            print_table(console, table(collect(settled(plan))))

    outcome = run_cells(plan, lambda text: say(console, text), block, only=names, storage=storage)
    plan = settled(plan)
    found = collect(plan)
    if outcome.stopped_by is not None:
        _print_status(plan, found, console)
        say(console, "stopped and saved; the same line goes on with it")
        return 128 + outcome.stopped_by
    _write_report(plan, found, console)
    _print_status(plan, found, console)
    return 3 if outcome.failed else 0


def _search(command: Ablate, console: Console) -> int:
    """Search, and report; exit codes as of a study."""
    from residuum.ablate.cells import about
    from residuum.ablate.search import Search, lay_out_search, read_range, run_search, search_table, write_search
    from residuum.report.tables import print_table

    if command.read is not None or command.vary or command.tune or command.storage or command.only:
        raise ConfigError("--search goes without a study file, --vary, --tune, --only and --storage: it is no study")
    if command.status or command.report:
        raise ConfigError(
            "a search has no --status and no --report; its own line goes on with it and writes its report"
        )
    need("optuna", extra="ablate")
    need("scipy.stats", extra="stats")
    ranges = tuple(read_range(words) for words in command.search)
    name = "-".join(one.field.rpartition(".")[2] for one in ranges)[:80]
    how = {name: getattr(command, name) for name in ("workers", "threads", "processes") if getattr(command, name)}
    search = Search(
        name, _base(command), ranges, command.trials, command.seeds or 1, command.metric or "val_accuracy",
        command.sampler, Running(**how), command.typed,
    )  # fmt: skip
    plan = lay_out_search(search, command.out)
    if command.plan:
        cells = search.trials * search.seeds
        parts = f"{counted(search.trials, 'trial')}, {counted(search.seeds, 'seed')}"
        say(console, f"{counted(cells, 'cell')}: {parts}")
        _estimate(plan, console, cells)
        return 0
    trials, outcome = run_search(plan, search, lambda text: say(console, text))
    if outcome.stopped_by is not None:
        say(console, "stopped and saved; the same line goes on with it")
        return 128 + outcome.stopped_by
    write_search(search, trials, plan.folder, about(plan))
    print_table(console, search_table(search, trials, 10))
    say(console, f"report in {plan.folder / 'report.html'}")
    return 3 if outcome.failed else 0


def _base(command: Ablate) -> dict[str, Any]:
    """The fields that a recipe file and the line give."""
    values = command.recipe.to_dict()
    over: dict[str, Any] = {name: values[name] for name in command.given}
    if command.preset is not None:
        over["model.preset"] = command.preset
    if command.read is not None:
        return beneath(command.read.base, over) | over
    base = {} if command.file is None else read_recipe(command.file)
    return beneath(base, over) | over


def _study(command: Ablate) -> Study:
    """The study of the file or of the flags, with what the line gives over it."""
    asked = {name: getattr(command, name) for name in ("seeds", "metric", "margin") if getattr(command, name)}
    how = {name: getattr(command, name) for name in ("workers", "threads", "processes") if getattr(command, name)}
    study = command.read
    if study is None:
        if not command.vary:
            raise ConfigError("name a study file, or what is to vary: --vary model.attention=none,se")
        made = from_flags(command.vary, _base(command), Running(**how), asked, command.tune)
        return dataclasses.replace(made, line=command.typed)
    if command.vary or command.tune or command.file is not None:
        raise ConfigError("a study file says itself what varies; leave out --vary, --tune and --recipe")
    return dataclasses.replace(
        study,
        question=dataclasses.replace(study.question, **asked),
        running=dataclasses.replace(study.running, **how),
        base=_base(command),
        line=command.typed,
    )


def _named(plan: "Plan", only: str | None) -> tuple[str, ...]:
    """The variants that `--only` names, with the base; none for all."""
    if only is None:
        return ()
    base = plan.variants[0]
    names = [v.name for v in plan.variants if v.name == only or v.levels.get(only) != base.levels.get(only)]
    if not names:
        known = [*base.levels, *(variant.name for variant in plan.variants)]
        raise ConfigError(f"--only is {quoted(only)}; it must be one of {', '.join(map(quoted, known))}")
    return base.name, *names


def _print_plan(plan: "Plan", console: Console) -> None:
    """Variants with their cost, and how many cells there are."""
    from rich.table import Table

    from residuum.ablate.cells import collect, threads_of

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("variant", "changes", "parameters", "MAC of an image"):
        table.add_column(heading, justify="left" if heading in ("variant", "changes") else "right", overflow="fold")
    for variant in plan.variants:
        changes = ", ".join(f"{name} = {value}" for name, value in variant.changes.items())
        table.add_row(
            Text(visible(variant.name, console)),
            Text(visible(changes, console)),
            f"{variant.parameters:,}",
            f"{variant.macs:,}",
        )
    console.print(table)
    running, found = plan.study.running, collect(plan)
    if plan.study.tuning is not None:
        tuning = plan.study.tuning
        say(
            console,
            f"{counted(len(plan.choosing), 'cell')} to tune {', '.join(tuning.fields)} by {tuning.metric} first: "
            f"{counted(len(tuning.combinations), 'combination')} for each variant, "
            f"{counted(len(tuning.seeds), 'seed')}",
        )
    cells = {(cell.key or cell.variant, cell.seed) for cell in found.cells}
    variants, seeds = counted(len(plan.variants), "variant"), counted(len(plan.study.question.seeds), "seed")
    say(console, f"{counted(len(cells), 'cell')}: {variants}, {seeds}")
    say(console, f"at once: {running.workers}, on {plan.device}; threads of each: {threads_of(plan.study)}")
    seconds = [cell.metrics["seconds"] for cell in found.cells if cell.status == "done"]
    if seconds:
        left = len({(cell.key or cell.variant, cell.seed) for cell in found.cells if cell.status == "waiting"})
        minutes = left * sum(seconds) / len(seconds) / running.workers / 60
        say(console, f"{left:,} cells are left, about {minutes:.1f} minutes, as those that are done took")
    else:
        _estimate(plan, console, len(plan.choosing) + len(plan.variants) * len(plan.study.question.seeds))
    _seeds_needed(found, console)


def _seeds_needed(found: "StudyResult", console: Console) -> None:
    """How many seeds show a difference of the margin, from how far runs spread so far."""
    from residuum.ablate.statistics import noise, pairs_needed

    spread = noise(found)
    if found.margin is None or spread is None:
        return
    scale, unit = (100, " points") if found.metric.endswith("accuracy") else (1, "")
    needed = pairs_needed(found.margin, spread[0])
    say(
        console,
        f"one run spreads by {scale * spread[0]:.3g}{unit} (sd); a difference of {scale * found.margin:g}{unit} "
        f"takes {'more seeds than are worth it' if needed is None else f'{needed} seeds'}",
    )


def _estimate(plan: "Plan", console: Console, cells: int) -> None:
    """The time to expect, from the first steps of the base, which are taken and forgotten."""
    from residuum.train.estimate import estimate
    from residuum.train.execution import Execution

    running = plan.study.running
    execution = Execution(device=running.device, workers=running.readers, memory=running.memory)
    recipe = recipe_of(plan.study.base, plan.variants[0].changes, plan.catalog)
    base = estimate(recipe, execution, catalog=plan.catalog)
    minutes = base.seconds * cells / running.workers / 60
    say(console, f"about {minutes:.1f} minutes, if all cells take as long as the base, {base.seconds:.1f} s")


def _print_status(plan: "Plan", found: "StudyResult", console: Console) -> None:
    """How many cells there are of each kind, and each that failed or diverged."""
    choosing = {cell.key: cell for cell in found.tuned.cells}.values() if found.tuned is not None else ()
    if choosing:
        say(console, f"{counted(len(choosing), 'cell')} to tune by: {_counted(choosing)}")
    cells = {(cell.key or cell.variant, cell.seed): cell for cell in found.cells}.values()
    say(console, f"{counted(len(cells), 'cell')}: {_counted(cells)}")
    if len(cells) < len(found.cells):
        say(console, "variants of identical configuration share their cells")
    for cell in (*choosing, *cells):
        if cell.status in ("failed", "diverged"):
            say(console, f"{cell.variant}, seed {cell.seed}: {cell.status}: {cell.reason}")
        if cell.status == "failed":
            say(console, f"  repeat it by:  {cell.command}")
    if found.older:
        say(console, f"{len(found.older):,} cells of older code or another torch are left and do not count:")
        for cell in found.older:
            say(console, f"  {cell.variant}, seed {cell.seed}, key {cell.key[:8]}")


def _counted(cells: Collection["CellResult"]) -> str:
    counts = {status: sum(cell.status == status for cell in cells) for status in _STATUS}
    return ", ".join(f"{n:,} {status}" for status, n in counts.items() if n)


_STATUS = ("done", "waiting", "failed", "diverged")


def _write_report(plan: "Plan", found: "StudyResult", console: Console) -> None:
    """The table, and the report in the study's folder."""
    from residuum.ablate.report import table, write_report
    from residuum.report.tables import print_table

    print_table(console, table(found))
    write_report(found, plan.folder)
    say(console, f"report in {plan.folder / 'report.html'}")
