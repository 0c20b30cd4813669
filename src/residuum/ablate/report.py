"""What a study found, for people and programs: a table for the terminal, and a folder with a page and three files.

report.html    the whole of it as one page, which needs nothing else
report.md      its sentences and tables
results.csv    a line a cell, with every metric in full precision: all other numbers follow from these
table.tex      the table of variants
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from residuum.ablate.factorial import Effect, effects, shapley
from residuum.ablate.results import CellResult, StudyResult, Tried, Tuned, Variant
from residuum.ablate.statistics import Comparison, compare, complete, level, lower_is_better, noise, values, verdict
from residuum.errors import RunError
from residuum.evaluation.seeds import Interval, mean_of
from residuum.files import write_text
from residuum.report.charts import (
    PALETTE,
    Bar,
    Chart,
    Line,
    Point,
    interval_chart,
    line_chart,
    paired_chart,
    scatter_chart,
)  # fmt: skip
from residuum.report.page import Card, Page, Section, html
from residuum.report.tables import Judged, Table, Value, Verdict, markdown
from residuum.units import counted

MANY = 20  # variants from which their distribution is drawn
_CARDS = 12
_LINES = len(PALETTE)  # variants of which learning curves are drawn
_CURVES = (("test_accuracy", "val_accuracy", "train_accuracy"), ("test_loss", "val_loss", "train_loss"))
_COLOURS: dict[str, Verdict] = {"better": "better", "worse": "worse"}


def write_report(result: StudyResult, folder: Path) -> None:
    """Write the files that the module's first lines list into a folder, made where it is not; raises `RunError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from None
    write_text(folder / "results.csv", _csv(result), RunError)
    write_text(folder / "table.tex", _tex(table(result)), RunError)
    found = page(result)
    parts = [f"# {found.title}", found.about, *(f"- {sentence}" for sentence in sentences(result))]
    parts = ["\n\n".join(parts[:2]), "\n".join(parts[2:])]
    for section in found.sections:
        parts += [f"## {section.title}", section.text, *(markdown(one) for one in section.tables)]
        parts += [f"```toml\n{section.listing.rstrip()}\n```"] if section.listing else []
    write_text(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n", RunError)
    write_text(folder / "report.html", html(found), RunError)


def table(result: StudyResult) -> Table:
    """A row a variant, the base first: its mean, its difference from the base, and the verdict."""
    by_seed, seconds = values(result, result.metric), values(result, "seconds")
    comparisons = {one.variant: one for one in compare(result)}
    base_seconds = _mean(seconds[result.base])
    rows: list[tuple[Value, ...]] = []
    for variant in _base_first(result):
        mine, took = by_seed[variant.name], _mean(seconds[variant.name])
        cost = "-" if took is None else _number("seconds", took)
        if took is not None and base_seconds and variant.name != result.base:
            cost += f" ({took / base_seconds:.2f}x)"
        one = comparisons.get(variant.name)
        judged: tuple[Value, ...] = ("", "base", "", "")
        if one is not None:
            gap = _gap(result.metric, one.mean) + (f", {_ends(result.metric, one.interval)}" if one.interval else "")
            judged = (
                gap, Judged(_short(result.metric, one), _COLOURS.get(one.kind, "noise")),
                "-" if one.adjusted is None else f"{one.adjusted:.2g}",
                "-" if one.superiority is None else f"{one.superiority:.2f}",
            )  # fmt: skip
        sizes = tuple(
            f"{n / 1e6:,.2f} M" if n >= 1e6 else f"{n / 1e3:,.1f} k" for n in (variant.parameters, variant.macs)
        )
        rows.append((variant.name, f"{len(mine)}", _spread(result.metric, mine), *judged, cost, *sizes))
    confidence = f"{100 * (1 - level(result)):.4g} %"
    headings = (
        "variant", "n", "mean ± sd", f"difference, {confidence}", "verdict", "p (Holm)", "P(better)", "seconds",
        "parameters", "MACs",
    )  # fmt: skip
    wide = ("p (Holm)", "P(better)", "seconds", "parameters", "MACs")
    unit = " (%)" if "accuracy" in result.metric else ""
    return Table(
        f"{result.name}: {_named(result.metric)}{unit}", headings, tuple(rows), _notes(comparisons.values()), wide
    )


def _short(metric: str, one: Comparison) -> str:
    """The verdict where there is little room."""
    if one.kind == "undecided" and one.more is not None:
        return f"undecided, ~{one.more:,} more"
    return verdict(one, _scale(metric)[0]).replace("same within", "same,")


def _notes(comparisons: Iterable[Comparison]) -> str:
    """What is to be known of the comparisons, said once where it is of several."""
    comparisons = list(comparisons)
    by_note: dict[str, list[str]] = {}
    for one in comparisons:
        for note in one.notes:
            by_note.setdefault(note, []).append(one.variant)
    said = ["Mean ± sd of one run, over seeds; differences are of pairs with the same seed."]
    if any(one.kind == "undecided" and one.more for one in comparisons):
        said.append("Undecided: about so many more seeds would tell.")
    for note, names in by_note.items():
        whose = "" if len(names) == len(comparisons) else f": {', '.join(names)}"
        said.append(f"{note[0].upper()}{note[1:]}{whose}.")
    return " ".join(said)


def sentences(result: StudyResult) -> list[str]:
    """One for each variant: what it changed, how surely, over how many seeds; then clear interactions."""
    unit = _scale(result.metric)[1] or f" of {_named(result.metric)}"
    found = []
    for one in compare(result):
        text = f"{one.variant}: {verdict(one, *_scale(result.metric))}"
        if one.mean is not None:
            ends = f" ({_ends(result.metric, one.interval)})" if one.interval else ""
            text += f"; {_gap(result.metric, one.mean)}{unit}{ends} over {counted(len(one.seeds), 'pair')}"
        found.append(f"{text}.{_said(one)}")
    for effect in effects(result):
        if len(effect.of) == 2 and effect.clear:
            ends = _ends(result.metric, effect.interval)
            found.append(
                f"{effect.name}: an interaction; the one changes the effect of the other by "
                f"{_gap(result.metric, effect.value)}{unit} ({ends})."
            )
    return found


def page(result: StudyResult) -> Page:
    """The study as a page."""
    by_seed, comparisons = values(result, result.metric), compare(result)
    done = sum(cell.status == "done" for cell in result.cells)
    unit = _scale(result.metric)[1]
    own = by_seed[result.base]
    seeds = counted(len(own), "seed")
    cards = [Card(f"{result.base} (base)", _spread(result.metric, own), f"{_named(result.metric)}, {seeds}")]
    for one in comparisons[:_CARDS]:
        value = "-" if one.mean is None else f"{_gap(result.metric, one.mean)}{unit}"
        ends = f", {_ends(result.metric, one.interval)}" if one.interval else ""
        text = f"{verdict(one, *_scale(result.metric))}{ends}, {counted(len(one.seeds), 'pair')}.{_said(one)}"
        cards.append(Card(one.variant, value, text, _COLOURS.get(one.kind, "noise")))
    variants = f"{counted(len(result.variants), 'variant')}, {counted(len(result.seeds), 'seed')}"
    about = f"A study of {variants}: {done} of {len(result.variants) * len(result.seeds)} cells are done."
    effect, charts = _interactions(result), (*_forest(result, comparisons), *_pairs(result, by_seed))
    before = any(len(one.of) == 2 and one.clear for one in effects(result))
    sections = (
        *([effect] if effect and before else []),
        Section("Variants", _noise(result), charts, (table(result), *_changes(result))),
        *([effect] if effect and not before else []),
        *_tuning(result),
        *_others(result),
        *_section("Cost", "The dashed line joins variants that none beats in both (Pareto).", _costs(result, by_seed)),
        *_section("Learning curves", "Means over seeds; shaded: one standard deviation of a run.", _curves(result)),
        *_section("Distribution", "Share of variants up to a value.", _distribution(result, by_seed)),
        *_troubles(result),
        Section("Cells", tables=(_cells(result),)),
        Section("How it was done", _how(result, len(comparisons)), listing=result.about.get("study", "")),
    )
    details = {name: text for name, text in result.about.items() if name not in ("study", "command")}
    command = result.about.get("command", "")
    return Page(f"Study {result.name}", about, command, details, tuple(cards), sections)


def _said(one: Comparison) -> str:
    return "".join(f" {note[0].upper()}{note[1:]}." for note in one.notes)


def _section(title: str, text: str, charts: Sequence[Chart]) -> Iterator[Section]:
    if charts:
        yield Section(title, text, charts=tuple(charts))


def _changes(result: StudyResult) -> Iterator[Table]:
    """By which fields each variant differs from the base, and what was tuned for it."""

    def fields(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} = {value}" for name, value in values.items()) or "-"

    headings = ("variant", "fields", "tuned")[: 3 if result.tuned else 2]
    chosen = {v.name: {} if result.tuned is None else result.tuned.chosen(v.name) for v in result.variants}
    rows = ((v.name, fields(v.changes), fields(chosen[v.name]))[: len(headings)] for v in _base_first(result))
    if any(variant.changes for variant in result.variants) or result.tuned:
        yield Table("What the variants are", headings, tuple(rows))


def _forest(result: StudyResult, comparisons: Sequence[Comparison]) -> tuple[Chart, ...]:
    bars = [
        _bar(result.metric, one.variant, one.mean, one.interval, verdict(one, *_scale(result.metric)), one.kind)
        for one in comparisons if one.mean is not None
    ]  # fmt: skip
    if not bars:
        return ()
    margin = None if result.margin is None else _scale(result.metric)[0] * result.margin
    names = ", ".join(f"{bar.name} {bar.label}" for bar in bars)
    shaded = "; the margin is shaded" if margin else ""
    return (
        interval_chart(
            f"Difference from {result.base}{shaded}", bars, unit=_axis(result.metric), labels="", margin=margin,
            description=f"Differences of {_named(result.metric)} with their intervals: {names}.",
        ),
    )  # fmt: skip


def _bar(metric: str, name: str, value: float, ends: Interval | None, label: str, kind: str) -> Bar:
    scale = _scale(metric)[0]
    colour = {"better": PALETTE[2], "worse": PALETTE[1]}.get(kind, "#7f7f7f")
    interval = None if ends is None else (scale * ends[0], scale * ends[1])
    return Bar(name, scale * value, interval, label.partition(":")[0], colour)


def _pairs(result: StudyResult, by_seed: Mapping[str, Mapping[int, float]]) -> tuple[Chart, ...]:
    names, scale = [variant.name for variant in _base_first(result)], _scale(result.metric)[0]
    runs = [[scale * by_seed[name].get(seed, math.nan) for name in names] for seed in result.seeds]
    if not any(by_seed.values()):
        return ()
    text = f"{_named(result.metric)} of every run, a line through those of one seed, a bar at each mean."
    return (paired_chart("Every run, by seed", names, runs, unit=_axis(result.metric, False), description=text),)


def _noise(result: StudyResult) -> str:
    found = noise(result)
    images = [one for one in compare(result) if one.images is not None]
    said = [f"{one.variant} {_ends(result.metric, one.images)}" for one in images]
    for_new = f" For new images as well as new seeds: {'; '.join(said)}." if said else ""
    if found is None:
        return for_new.strip()
    sd, correlation = _number(result.metric, found[0]), f"{found[1]:.2f}"
    return f"The sd of one run is {sd}; runs of one seed correlate by {correlation}.{for_new}"


def _interactions(result: StudyResult) -> Section | None:
    found, metric = effects(result), result.metric
    if not found:
        return None

    def kind(one: Effect) -> str:
        good = (one.value < 0) == lower_is_better(metric)
        return "undecided" if not one.clear or len(one.of) == 2 else "better" if good else "worse"

    bars = [_bar(metric, one.name, one.value, one.interval, _gap(metric, one.value), kind(one)) for one in found]
    chart = interval_chart(
        "Effects and interactions", bars, unit=_axis(metric), labels="",
        description="; ".join(f"{bar.name} {bar.label}" for bar in bars),
    )  # fmt: skip
    rows = tuple((one.name, _gap(metric, one.value), _ends(metric, one.interval), f"{one.p:.2g}") for one in found)
    seeds = complete(result, metric)[1]
    note = (
        f"Over {len(seeds)} seeds that all variants have. An interaction is by how much one changes the effect of "
        "the other. p is of each alone."
    )
    tables = [Table("Effects", ("effect", "size", "interval", "p"), rows, note)]
    shares = shapley(result)
    if shares:
        each = tuple((name, _gap(metric, share)) for name, share in shares.items())
        note = "They add up to the difference of the variant with all factors from the base."
        tables.append(Table("Shapley's shares", ("factor", "share"), each, note))
    clear = any(one.clear and len(one.of) == 2 for one in found)
    text = (
        "There are interactions: what a factor is worth depends on another, and its main effect is only an average."
        if clear
        else "No interaction is clear: its interval holds 0."
    )
    return Section("Interactions", text, charts=(chart, *_crossed(result, found)), tables=tuple(tables))


def _crossed(result: StudyResult, found: Sequence[Effect]) -> Iterator[Chart]:
    """For each clear interaction the means at the levels of the one factor, a line a level of the other."""
    by_seed, (scale, _) = values(result, result.metric), _scale(result.metric)
    for a, b in dict.fromkeys(one.of for one in found if len(one.of) == 2 and one.clear):
        means: dict[str, dict[str, list[float]]] = {}
        for variant in _base_first(result):
            runs = means.setdefault(variant.levels[b], {}).setdefault(variant.levels[a], [])
            runs += [scale * value for value in by_seed[variant.name].values()]
        ticks = list(next(iter(means.values())))
        lines = [
            Line(f"{b}: {name}", [(i, mean(at[tick])) for i, tick in enumerate(ticks) if at[tick]], colour)
            for (name, at), colour in zip(means.items(), cycle(PALETTE), strict=False)
        ]  # fmt: skip
        said = "; ".join(f"{line.name} {', '.join(f'{y:.4g}' for _, y in line.places)}" for line in lines)
        text, axis = f"Means at {', '.join(ticks)}: {said}", _axis(result.metric, False)
        yield line_chart(f"{a} by {b}", lines, x=a, y=axis, description=text, ticks=ticks)


def _others(result: StudyResult) -> Iterator[Section]:
    """The metrics that are shown beside the tested one, with differences and without verdicts."""
    names = [n for n in result.also if n not in ("seconds", "parameters", "macs", result.metric)]
    tables = []
    for name in names:
        by_seed = values(result, name)
        gaps = {one.variant: one for one in compare(result, name)}
        rows = []
        for variant in _base_first(result):
            one = gaps.get(variant.name)
            judged = (_gap(name, one.mean), _ends(name, one.interval)) if one else ("", "")
            rows.append((variant.name, _spread(name, by_seed[variant.name]), *judged))
        if any(by_seed.values()):
            tables.append(Table(_named(name), ("variant", "mean ± sd", "difference", "interval"), tuple(rows)))
    if tables:
        yield Section("Other metrics", "Shown, not tested: no verdict counts them.", tables=tuple(tables))


def _tuning(result: StudyResult) -> Iterator[Section]:
    """What was tried for each variant, what was chosen, and how the metric goes with each field."""
    tuned = result.tuned
    if tuned is None:
        return
    by_variant = {v.name: [one for one in tuned.tried if one.variant == v.name] for v in _base_first(result)}
    rows = [
        (name, _words(one.values), _spread(tuned.metric, one.found),
         f"{one.diverged} diverged" if one.diverged else "", "chosen" if one.chosen else "")
        for name, tried in by_variant.items() for one in tried
    ]  # fmt: skip
    headings = ("variant", "values", f"{_named(tuned.metric)}, mean ± sd", "", "choice")
    runs = f"{counted(len(by_variant), 'variant')}, {counted(len(tuned.seeds), 'seed')} of their own"
    text = (
        f"Alike for every variant, before any cell of the study: each combination of values was trained with "
        f"{runs} that the study does not use, and judged by {_named(tuned.metric)} after the last epoch; these cells "
        "look at no test image. The best mean is chosen, of two alike the one with the lower loss."
    )
    edges = [f"{name} of {variant}" for variant, name in _at_the_edge(by_variant)]
    if edges:
        text += f" At the end of what was tried: {', '.join(edges)}; values beyond it may be better."
    if result.metric.startswith("val_"):
        text += " The study is judged on the very images that values were chosen on."
    charts = tuple(chart for name in _fields_tried(tuned) for chart in _isolated(tuned, by_variant, name))
    yield Section("Tuning", text, charts, (Table("What was tried", headings, tuple(rows)),))


def _fields_tried(tuned: Tuned) -> list[str]:
    return list(tuned.tried[0].values) if tuned.tried else []


def _values_tried(tried: Sequence[Tried], name: str) -> list[Any]:
    found: list[Any] = []
    for one in tried:
        if one.values[name] not in found:
            found.append(one.values[name])
    return found


def _at_the_edge(by_variant: Mapping[str, Sequence[Tried]]) -> Iterator[tuple[str, str]]:
    """Variants and fields whose chosen number is the smallest or the largest of three or more."""
    for variant, tried in by_variant.items():
        for one in tried:
            for name, value in one.values.items() if one.chosen else ():
                numbers = _values_tried(tried, name)
                plain = all(isinstance(number, int | float) for number in numbers)
                if plain and len(numbers) > 2 and value in (min(numbers), max(numbers)):
                    yield variant, name


def _isolated(tuned: Tuned, by_variant: Mapping[str, Sequence[Tried]], name: str) -> Iterator[Chart]:
    """The metric over the values of one field, the other fields each time at their best; a line a variant."""
    scale, best = _scale(tuned.metric)[0], min if lower_is_better(tuned.metric) else max
    values = _values_tried(next(iter(by_variant.values())), name)
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    lines = []
    for (variant, tried), colour in zip(by_variant.items(), PALETTE, strict=False):
        places = []
        for place, value in enumerate(values):
            found = [mean(one.found.values()) for one in tried if one.values[name] == value and one.found]
            if found:
                places.append((float(place), scale * best(found)))
        if places:
            lines.append(Line(variant, places, colour))
    if lines:
        said = "; ".join(f"{line.name} {', '.join(f'{y:.4g}' for _, y in line.places)}" for line in lines)
        ticks = [str(value) for value in values]
        others = ", others at their best" if len(_fields_tried(tuned)) > 1 else ""
        yield line_chart(
            f"{_named(tuned.metric)} over {name}{others}", lines, x=name, y=_axis(tuned.metric, False), ticks=ticks,
            description=f"Means at {', '.join(ticks)}: {said}",
        )  # fmt: skip


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _costs(result: StudyResult, by_seed: Mapping[str, Mapping[int, float]]) -> list[Chart]:
    seconds = values(result, "seconds")
    costs = {
        "million MACs of an image": {v.name: v.macs / 1e6 for v in result.variants},
        "seconds of training": {name: mean(mine.values()) for name, mine in seconds.items() if mine},
    }
    charts, scale = [], _scale(result.metric)[0]
    ranked = {result.base, *(one.variant for one in compare(result) if one.kind != "incomplete")}
    sign = -1 if lower_is_better(result.metric) else 1
    for label, cost in costs.items():
        points = [
            Point(v.name, cost[v.name], scale * mean(by_seed[v.name].values()), PALETTE[i % len(PALETTE)])
            for i, v in enumerate(result.variants) if by_seed[v.name] and v.name in cost
        ]  # fmt: skip
        if len({point.x for point in points}) < 2:
            continue
        good = [(p.x, sign * p.y, p.name) for p in points if p.name in ranked]
        front = [
            name for x, y, name in good
            if not any(other_x <= x and other_y >= y and (other_x, other_y) != (x, y) for other_x, other_y, _ in good)
        ]  # fmt: skip
        charts.append(
            scatter_chart(
                f"{_named(result.metric)} over {label}", points, x=label, y=_axis(result.metric, False), zero=False,
                front=front, description=f"None beats {', '.join(front)} in both.",
            )
        )  # fmt: skip
    return charts


def _curves(result: StudyResult) -> list[Chart]:
    charts = []
    for names in _CURVES:
        rows = [row for cell in result.cells if cell.status == "done" for row in cell.history]
        several = {name: len({row["epoch"] for row in rows if name in row and "epoch" in row}) for name in names}
        name = next((name for name in names if several[name] > 1), None)
        if name is None:
            continue
        scale, lines = _scale(name)[0], []
        for i, variant in enumerate(_base_first(result)[:_LINES]):
            by_epoch: dict[int, list[float]] = {}
            for cell in result.cells:
                if cell.variant == variant.name and cell.status == "done":
                    for row in cell.history:
                        if name in row:
                            by_epoch.setdefault(row["epoch"], []).append(scale * row[name])
            places = [(epoch, mean(found)) for epoch, found in sorted(by_epoch.items())]
            spread = [stdev(found) if len(found) > 1 else 0.0 for _, found in sorted(by_epoch.items())]
            band = [(middle - sd, middle + sd) for (_, middle), sd in zip(places, spread, strict=True)]
            if places:
                lines.append(Line(variant.name, places, PALETTE[i], band))
        ends = ", ".join(f"{line.name} ends at {line.places[-1][1]:.4g}" for line in lines)
        label = _named(name) + (" (%)" if scale == 100 else "")
        charts.append(line_chart(_named(name), lines, x="epoch", y=label, description=ends))
    return charts


def _distribution(result: StudyResult, by_seed: Mapping[str, Mapping[int, float]]) -> list[Chart]:
    scale = _scale(result.metric)[0]
    found = sorted(scale * mean(mine.values()) for mine in by_seed.values() if mine)
    if len(found) < MANY:
        return []
    places = [(x, share / len(found)) for i, x in enumerate(found) for share in (i, i + 1)]
    text = f"{len(found)} variants from {found[0]:.4g} to {found[-1]:.4g}."
    axis = _axis(result.metric, False)
    return [line_chart("Variants up to a value", [Line("", places, PALETTE[0])], x=axis, y="share", description=text)]


def _troubles(result: StudyResult) -> Iterator[Section]:
    kinds: list[tuple[str, CellResult]] = [
        (cell.status, cell) for cell in result.cells if cell.status in ("failed", "diverged")
    ]
    if result.tuned is not None:
        kinds += [(f"{c.status} in tuning", c) for c in result.tuned.cells if c.status in ("failed", "diverged")]
    kinds += [("older code", cell) for cell in result.older]
    if kinds:
        rows = tuple((_label(cell), kind, cell.reason or "-", cell.command or "-") for kind, cell in kinds)
        text = "Failed cells are tried again when the study is run again. Cells of older code do not count."
        found = Table("Cells that do not count", ("cell", "what", "reason", "command"), rows)
        yield Section("Failures, divergences, older code", text, tables=(found,))


def _cells(result: StudyResult) -> Table:
    names = [name for name in dict.fromkeys((result.metric, *result.also)) if name not in ("parameters", "macs")]
    rows = [
        (_label(cell), cell.status, cell.key[:8],
         *(_number(name, cell.metrics[name]) if name in cell.metrics else "-" for name in names), cell.command or "-")
        for cell in result.cells
    ]  # fmt: skip
    headings = ("cell", "status", "key", *map(_named, names), "command")
    return Table("Every cell, and the line that repeats it", headings, tuple(rows))


def _label(cell: CellResult) -> str:
    return f"{cell.variant}, seed {cell.seed}"


def _how(result: StudyResult, comparisons: int) -> str:
    margin = _number(result.metric, result.margin) + _scale(result.metric)[1] if result.margin else "none"
    looks = f"looks at {', '.join(map(str, result.looks))} seeds" if result.looks else "no look before the end"
    extended = " The study was extended after its results had been seen, which makes its p too small." * (
        result.extended and not result.looks
    )
    alpha = level(result)
    tuned = " Values were tuned for every variant alike, as said above." * (result.tuned is not None)
    seeds = counted(len(result.seeds), "seed")
    return (
        f"Decided beforehand: {_named(result.metric)} of the last epoch is tested, {seeds}, margin "
        f"{margin}, {looks}.{extended}{tuned} Differences are of pairs with the same seed, their intervals Student's, "
        f"which hold {100 * (1 - alpha):.4g} %, each by itself. Over {comparisons} comparisons p is adjusted by Holm; "
        f"better and worse are said below {alpha:.4g}. Same within the margin: the interval of "
        f"{100 * (1 - 2 * alpha):.4g} % lies in it. An interval speaks of new seeds on these test images; the one for "
        "new images adds their variance. Every number follows from results.csv, which has a line a cell."
    )


def _base_first(result: StudyResult) -> list[Variant]:
    return sorted(result.variants, key=lambda variant: variant.name != result.base)


def _mean(mine: Mapping[int, float]) -> float | None:
    return mean(mine.values()) if mine else None


def _named(metric: str) -> str:
    return metric.replace("_", " ")


def _scale(metric: str) -> tuple[float, str]:
    """What a difference is multiplied by to be read, and its unit."""
    return (100, " points") if "accuracy" in metric else (1, "")


def _axis(metric: str, difference: bool = True) -> str:
    unit = ("points" if difference else "%") if "accuracy" in metric else ""
    return f"{_named(metric)} ({unit})" if unit else _named(metric)


def _number(metric: str, value: float, sign: str = "") -> str:
    if "accuracy" in metric:
        return f"{100 * value:{sign}.2f}"
    if metric in ("parameters", "macs", "images_per_second", "peak_memory"):
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.1f}" if metric == "seconds" else f"{value:{sign}.4f}"


def _gap(metric: str, value: float | None) -> str:
    return "-" if value is None else _number(metric, value, "+")


def _ends(metric: str, interval: Interval | None) -> str:
    return "-" if interval is None else f"{_gap(metric, interval[0])} to {_gap(metric, interval[1])}"


def _spread(metric: str, mine: Mapping[int, float]) -> str:
    """`96.07 ± 0.36`: the mean and the sd of one run."""
    if not mine:
        return "-"
    found = mean_of(list(mine.values()))
    return _number(metric, found.mean) + ("" if found.sd is None else f" ± {_number(metric, found.sd)}")


def _csv(result: StudyResult) -> str:
    """A line a cell: what it is, the level of each factor, every metric as Python writes it."""
    variants = {variant.name: variant for variant in result.variants}
    both = [*((cell, "current") for cell in result.cells), *((cell, "older") for cell in result.older)]
    both += [(cell, "tuning") for cell in result.tuned.cells] if result.tuned is not None else []
    factors = list(dict.fromkeys(f for variant in result.variants for f in variant.levels))
    sizes = ("parameters", "macs")
    metrics = sorted({name for cell, _ in both for name in cell.metrics} - {*sizes})
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    own = ("variant", "seed", "status", "code", "key")
    writer.writerow([*own, *(f"factor.{f}" for f in factors), *metrics, *sizes, "weights", "reason", "command"])
    for cell, code in both:
        variant = variants.get(cell.variant, Variant(cell.variant))
        writer.writerow(
            [cell.variant, cell.seed, cell.status, code, cell.key, *(variant.levels.get(f, "") for f in factors),
             *(repr(float(cell.metrics[m])) if m in cell.metrics else "" for m in metrics), variant.parameters,
             variant.macs, cell.weights, cell.reason, cell.command]
        )  # fmt: skip
    return file.getvalue()


def _tex(found: Table) -> str:
    """The table's first columns as a LaTeX tabular, with rules of booktabs."""
    lines = [" & ".join(_in_tex(str(value)) for value in row[:5]) + r" \\" for row in (found.headings, *found.rows)]
    body = "\n".join(lines[1:])
    return (
        f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{lrrrl}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _in_tex(text: str) -> str:
    text = re.sub(r"[\\&%$#_{}~^]", lambda m: {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                  "^": r"\textasciicircum{}"}.get(m[0], "\\" + m[0]), text)  # fmt: skip
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text).replace("±", r"$\pm$")
