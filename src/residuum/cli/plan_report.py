"""What the planner found, for people: what it chose, and time against memory as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from residuum.cli.console import say
from residuum.cli.tables import figures_table, show
from residuum.draw import check_drawable
from residuum.errors import ResiduumError
from residuum.files import write_whole
from residuum.memory.checkpointing import MODES
from residuum.memory.planner import Plan, Planner
from residuum.units import show_size


def print_plan(
    console: Console, planner: Planner, plan: Plan, name: str, *, room: str | int, budget: str, precision: str, why: str
) -> None:
    """The choice, its predicted peak and slowdown, the frontier with the uniform modes, the largest batch.

    `room` is the budget and `budget` the same in words; `why` says why it is this `precision`.
    """
    say(console, Text(name, "bold"), f": batch size {plan.batch_size} in {precision} within {budget}")
    if plan.recomputes:
        chosen = figures_table("part", ())
        chosen.add_column("recomputed")
        for part, modes in plan.in_words():
            chosen.add_row(part, modes)
        show(console, chosen)
        say(console, f"predicted: a peak of {show_size(plan.peak)}; a step takes {plan.slowdown:.3f} times as long")
    else:
        say(console, f"fits without recomputation: a peak of {show_size(plan.peak)} (predicted); nothing is recomputed")
    console.print()
    table = figures_table("plan", ("peak", "time of a step"))
    table.add_column("")
    uniform = [(mode, planner.uniform(plan.batch_size, mode)) for mode in reversed(MODES)]
    rows = [("planned", found) for found in planner.frontier(plan.batch_size)]
    rows += [(f"all {mode}", found) for mode, found in uniform] + [("chosen", plan)]
    most = max(found.peak for _, found in rows)
    for label, found in sorted(rows, key=lambda row: row[1].peak):
        bar = "█" * max(1, round(18 * found.peak / most))
        style = "bold" if label == "chosen" else None
        table.add_row(label, show_size(found.peak), f"{found.slowdown:.3f}", bar, style=style)
    show(console, table)
    say(console, f"largest batch size within {budget}: {planner.largest_batch(room)}, recomputing what it takes")
    timed = ", from times in fp32, as this device computes no bf16" if planner.timed_in_fp32 else ""
    console.print(
        "The peak is of a step's tensors: parameters, gradients, optimizer state, images, activations. The time is "
        f"predicted{timed}; 1 is a step without recomputation. Precision: {precision}, {why}.",
        style="dim",
    )


def draw_frontier(planner: Planner, plan: Plan, path: Path, name: str) -> None:
    """Time against memory as a picture, SVG or PNG; raises `ResiduumError` where it cannot be written."""
    check_drawable(path)
    import matplotlib as mpl
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
    axes.set(
        xlabel="predicted peak (GB)", ylabel="predicted time of a step", title=f"{name}, batch size {plan.batch_size}"
    )
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    metadata = {"Title": f"{name}: time of a step against memory", "Date": None} if path.suffix == ".svg" else None
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "residuum"}
    ):  # text stays text, and the bytes the same
        write_whole(path, lambda partial: figure.savefig(partial, dpi=140, metadata=metadata), ResiduumError)
