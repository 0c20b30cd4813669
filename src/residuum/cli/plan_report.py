"""What the planner found, for people: what it chose, and time against memory as a table and as a picture."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from residuum.draw import check_drawable
from residuum.errors import ResiduumError
from residuum.files import write_whole
from residuum.memory.checkpointing import MODES
from residuum.memory.planner import Plan, Planner
from residuum.units import show_size


def in_words(plan: Plan) -> list[tuple[str, str]]:
    """Each part and its modes: ("layer3", "block x 4, none x 2")."""
    rows = [("stem", plan.stem)]
    for number, modes in enumerate(plan.modes, 1):
        runs = [(mode, len(list(same))) for mode, same in groupby([modes] if isinstance(modes, str) else modes)]
        rows.append((f"layer{number}", ", ".join(f"{mode} x {count}" if count > 1 else mode for mode, count in runs)))
    return rows


def print_plan(console: Console, planner: Planner, plan: Plan, name: str, budget: int) -> None:
    """The choice, its predicted peak and slowdown, the frontier with the uniform modes, the largest batch."""
    chosen = Table("part", "recomputed", title=f"{name}, batch {plan.batch_size}, within {show_size(budget)}")
    for part, modes in in_words(plan):
        chosen.add_row(part, modes)
    console.print(chosen)
    console.print(
        f"predicted: peak {show_size(plan.peak)}, a step takes {plan.slowdown:.3f} times as long", highlight=False
    )
    table = Table(title="time against memory")
    table.add_column("plan")
    for heading in ("peak", "time of a step", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    uniform = [(mode, planner.uniform(plan.batch_size, mode)) for mode in reversed(MODES)]
    rows = [("planned", found) for found in planner.frontier(plan.batch_size)]
    rows += [(f"all {mode}", found) for mode, found in uniform] + [("chosen", plan)]
    most = max(found.peak for _, found in rows)
    for label, found in sorted(rows, key=lambda row: row[1].peak):
        bar = "█" * max(1, round(18 * found.peak / most))
        style = "bold" if label == "chosen" else None
        table.add_row(label, show_size(found.peak), f"{found.slowdown:.3f}", bar, style=style)
    console.print(table)
    console.print(f"largest batch within {show_size(budget)}: {planner.largest_batch(budget)}", highlight=False)
    console.print(
        "The peak is of a step's tensors: parameters, gradients, optimizer state, images, activations. Time is "
        "predicted, 1 is without recomputation.",
        style="dim",
    )


def draw_frontier(planner: Planner, plan: Plan, path: Path, name: str) -> None:
    """Time against memory as a picture, SVG or PNG; raises `ResiduumError` where it cannot be written."""
    check_drawable(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()

    def points(plans: Sequence[Plan]) -> tuple[list[float], list[float]]:
        return [p.peak / 1e9 for p in plans], [p.slowdown for p in plans]

    axes.plot(
        *points(planner.frontier(plan.batch_size, 40)), color="#2563eb", marker="o", markersize=3, label="planned"
    )
    for mode in MODES:
        x, y = points([planner.uniform(plan.batch_size, mode)])
        axes.scatter(x, y, color="#94a3b8", zorder=3)
        axes.annotate(f"all {mode}", (x[0], y[0]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.scatter(*points([plan]), color="#c2410c", s=60, zorder=4, label="chosen")
    axes.set(xlabel="predicted peak (GB)", ylabel="predicted time of a step", title=f"{name}, batch {plan.batch_size}")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=140), ResiduumError)
