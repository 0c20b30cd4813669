"""What the runner of a study costs: seconds a cell beyond its training, and what a second worker gives.

    python -m benchmarks.study_overhead

Runs the same cells in a process of its own without the runner, with one worker, and with two, each with one thread.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from residuum.ablate.cell import Job
from residuum.ablate.cells import Plan, lay_out
from residuum.ablate.runner import run
from residuum.ablate.study import Study
from residuum.ablate.worker import train

STUDY = """
name = "overhead"
design = "list"
seeds = {cells}
[base]
epochs = {epochs}
[base.model]
width = 0.5
[variant.a]
[variant.b]
label_smoothing = 0.1
[run]
threads = 1
device = "cpu"
workers = {workers}
"""


def planned(folder: Path, cells: int, epochs: int, workers: int) -> Plan:
    return lay_out(Study.from_toml(STUDY.format(cells=cells, epochs=epochs, workers=workers)), folder)


def alone(plan: Plan) -> list[float]:
    """Seconds of each cell, trained here one after the other without parent and worker; the first is not counted."""
    found = []
    for cell in plan.cells:
        if "a" not in cell.variants:
            continue
        record = replace(plan.begin(cell), threads=1)
        recipe = {**cell.recipe.to_dict(), "data.path": plan.catalog.name}
        how = {"device": "cpu", "workers": 2, "memory": None}
        begin = time.perf_counter()
        train(Job(recipe, str(cell.folder), record.__dict__, how, "metrics", plan.catalog.digest))
        found.append(time.perf_counter() - begin)
    return found[1:]


def by_runner(plan: Plan) -> tuple[float, list[float]]:
    """Seconds from the end of the first cell to that of the last, and when each cell ended."""
    ends: list[float] = []
    outcome = run(plan, lambda text: ends.append(time.perf_counter()) if ": done in " in text else None, only=("a",))
    assert not outcome.failed
    workers = plan.study.running.workers  # the first cell of each begins when it has started
    return ends[-1] - ends[workers - 1], ends[workers - 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    plain, one, two = [], [], []
    for _ in range(args.repeats):  # in turn, so that a machine that grows slower does so for all
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            plain.append(statistics.mean(alone(planned(root / "alone", args.cells, args.epochs, 1))))
            for workers, found in ((1, one), (2, two)):
                seconds, ends = by_runner(planned(root / str(workers), args.cells, args.epochs, workers))
                found.append(seconds / (len(ends) - 1))
    a, b, c = (statistics.median(each) for each in (plain, one, two))
    print(f"a cell alone: {a:.2f} s; by the runner: {b:.2f} s, {b - a:+.2f} s; two workers: {b / c:.2f} times as many")


if __name__ == "__main__":
    main()
