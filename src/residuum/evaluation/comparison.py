"""A comparison of runs as it is shown: tables in a terminal, JSON, and a page with learning curves."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from residuum.errors import shortened
from residuum.evaluation.runs import Comparison, Finished, Group, number
from residuum.evaluation.seeds import MOST, Difference, Interval
from residuum.report.charts import PALETTE, Chart, Line, line_chart
from residuum.report.page import Card, Page, Section
from residuum.report.tables import Judged, Table, Value, Verdict, print_table
from residuum.units import counted

LONGEST = 1000  # characters of a note
_VERDICTS: dict[str, Verdict] = {"higher": "better", "lower": "worse", "not resolved": "noise"}
_CURVES = {"val_accuracy": "val accuracy (%)", "train_accuracy": "train accuracy (%)", "val_loss": "val loss",
           "train_loss": "train loss"}  # fmt: skip


def print_comparison(console: Console, found: Comparison) -> None:
    """What to know before, then the recipes, then the runs."""
    _print_pairs(console, [(note.topic, note.text) for note in found.notes])
    _print_pairs(console, [(group.letter, group.described) for group in found.groups])
    print_table(console, recipes(found, [group.letter for group in found.groups]))
    print_table(console, runs(found))


def _print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Short words on the left, what is said of them on the right, lines that are wrapped indented."""
    if pairs:
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for word, text in pairs:
            grid.add_row(Text(word, "bold"), Text(shortened(text, LONGEST)))
        console.print(grid)
        console.print()


def recipes(found: Comparison, names: Sequence[str]) -> Table:
    """A row a recipe, by its name: its mean over seeds, and its difference from the first."""
    rows: list[tuple[Value, ...]] = []
    for name, group in zip(names, found.groups, strict=True):
        own, gap = group.mean, group.difference
        cells = (f"{own.n}", _with_interval(own.mean, own.interval), _points(own.sd))
        if gap is None:
            rows.append((name, *cells, "", "", "", ""))
        else:
            p = "" if gap.p is None else f"{gap.p:.2g}"
            verdict = Judged(gap.verdict, _VERDICTS[gap.verdict])
            rows.append((name, *cells, _with_interval(gap.value, gap.interval, "+"), p, gap.over, verdict))
    headings = (
        "recipe", "seeds", f"{found.number.partition('_')[0]} %", "sd", "difference", "p", "over", "verdict"
    )  # fmt: skip
    return Table(f"{_number(found)} of the last epoch", headings, tuple(rows), _explained(found), wide=("p",))


def _explained(found: Comparison) -> str:
    first, *others = found.groups
    gaps = {group.letter: group.difference for group in others if group.difference is not None}
    lines = ["The number is that of the last epoch, not of the best; intervals hold 95 %."]
    if gaps:
        lines.append(f"Differences, in points, are from {first.letter}.")
    if any(gap.over.endswith("images") for gap in gaps.values()):
        lines.append("An interval over images is of these networks alone: other seeds of the same recipes differ too.")
    for letter, gap in gaps.items():
        if gap.verdict == "not resolved" and not gap.over.endswith("images"):
            lines.append(f"{letter}: {_missing(gap)}.")
    if len(gaps) > 1:
        lines.append(
            f"Each of the {len(gaps)} comparisons stands for itself: of 20 without an effect one looks like one."
        )
    return " ".join(lines)


def _missing(gap: Difference) -> str:
    """What it takes to resolve a difference."""
    if gap.interval is None:
        return "too few seeds to judge"
    if gap.more is None:
        return f"a difference of this size takes over {MOST:,} seeds"
    return f"about {gap.more:,} more seeds would resolve a difference of this size"


def _number(found: Comparison) -> str:
    return found.number.replace("_", " ")


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _with_interval(value: float, interval: Interval | None, sign: str = "") -> str:
    """`96.07 ±0.36`, or both ends where they are not equally far."""
    text = f"{100 * value:{sign}.2f}"
    if interval is None:
        return text
    low, high = value - interval[0], interval[1] - value
    if abs(high - low) < 5e-5:
        return f"{text} ±{100 * high:.2f}"
    return f"{text}, {100 * interval[0]:{sign}.2f} to {100 * interval[1]:{sign}.2f}"


def runs(found: Comparison) -> Table:
    """A row a run: its last epoch's numbers, and what they took."""
    rows = tuple(_run(group, run, found.number) for group in found.groups for run in group.runs)
    headings = (
        "run",
        "recipe",
        "seed",
        f"{found.number.partition('_')[0]} %",
        "train loss",
        "epochs",
        "images/s",
        "min",
    )
    return Table("Runs", headings, rows, wide=("train loss", "images/s"))


def _run(group: Group, run: Finished, number: str) -> tuple[str, ...]:
    loss = run.last("train_loss")
    return (
        run.name, group.letter, str(run.seed), _points(run.last(number)), "-" if loss is None else f"{loss:.3f}",
        str(len(run.rows)), f"{run.images_per_second:,.0f}", f"{run.seconds / 60:.1f}",
    )  # fmt: skip


def as_json(found: Comparison) -> str:
    """Everything that was found, accuracies from 0 to 1."""

    def group(one: Group) -> dict[str, Any]:
        gap = one.difference
        return {
            "recipe": one.letter,
            "changes": {name: list(both) for name, both in one.changes.items()},
            **asdict(one.mean),
            "values": {str(seed): value for seed, value in one.values.items()},
            "difference": None if gap is None else asdict(gap) | {"verdict": gap.verdict},
            "runs": [{"path": str(run.path), "seed": run.seed, "value": run.last(found.number)} for run in one.runs],
        }

    values = {
        "number": found.number,
        "notes": [asdict(note) for note in found.notes],
        "groups": [group(one) for one in found.groups],
    }
    return json.dumps(values, indent=1)


def page(found: Comparison, command: str) -> Page:
    """The comparison as a page."""
    first, *others = found.groups
    seeds = counted(first.mean.n, "seed")
    mean_of_first = _with_interval(first.mean.mean, first.mean.interval)
    cards = [Card(f"{_number(found)}, {first.letter}", f"{mean_of_first} %", seeds)]
    for group in others[:5]:
        assert group.difference is not None
        verdict = group.difference.verdict
        note = verdict if verdict != "not resolved" else f"{verdict}: {_missing(group.difference)}"
        difference = _with_interval(group.difference.value, group.difference.interval, "+")
        cards.append(Card(f"{group.letter}  {group.described}", f"{difference} points", note, _VERDICTS[verdict]))
    count = sum(len(group.runs) for group in found.groups)
    names = [f"{group.letter}  {group.described}" for group in found.groups]
    others_too = " ".join(f"{note.topic}: {note.text}." for note in found.notes)
    return Page(
        "Runs compared", f"{count} finished runs of {len(found.groups)} recipes.", command, cards=tuple(cards),
        sections=(
            *([Section("What else differs", others_too)] if found.notes else []),
            Section("Recipes", tables=(recipes(found, names),)),
            Section("Learning curves", "Thick: the mean over seeds. Thin: each run.", charts=tuple(_curves(found))),
            Section("Runs", tables=(runs(found),)),
        ),
    )  # fmt: skip


def _curves(found: Comparison) -> Iterator[Chart]:
    """A chart for each number that any run has: a line a run, and the mean of each recipe over its runs' epochs."""
    for name, label in _CURVES.items():
        scale = 100 if name.endswith("accuracy") else 1
        lines: list[Line] = []
        for place, group in enumerate(found.groups):
            colour = PALETTE[place % len(PALETTE)]
            each = [
                [(row["epoch"], scale * value) for row in run.rows if (value := number(row, name)) is not None]
                for run in group.runs
            ]
            each = [places for places in each if places]
            if not each:
                continue
            if len(each) > 1:
                lines += [Line("", places, colour) for places in each]
            middle = [(same[0][0], mean(value for _, value in same)) for same in zip(*each, strict=False)]
            lines.append(Line(group.letter, middle, colour))
        if lines:
            ends = "; ".join(f"{line.name} ends at {line.places[-1][1]:.3g}" for line in lines if line.name)
            yield line_chart(label, lines, x="epoch", y=label, description=f"{label} over the epochs: {ends}.")
