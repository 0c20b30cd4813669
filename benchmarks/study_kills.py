"""A study whose processes are killed again and again ends as one that is left alone.

    python -m benchmarks.study_kills --kills 20

Runs a study of 24 cells twice: once undisturbed, and once with SIGKILL for the command and its workers, all of them or
some, after a random number of steps, followed by the same line again. Prints what differs in what was found, but for
times, and whether any step was taken again that had been saved.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from residuum.ablate import worker
from residuum.train import loop
from residuum.train.run import Run

STUDY = """
seeds = {seeds}
[base]
epochs = {epochs}
batch_size = 256
[base.model]
width = 0.25
stochastic_depth = 0.2
[factor.SE]
on = {{ "model.attention" = "se" }}
off = {{ "model.attention" = "none" }}
[factor.D]
on = {{ "model.downsample" = "avg" }}
off = {{ "model.downsample" = "pad" }}
[factor.smoothing]
on = {{ label_smoothing = 0.1 }}
off = {{ label_smoothing = 0.0 }}
[run]
workers = 2
threads = 1
retries = 100
"""
TIMES = ("seconds", "images_per_second")


LOG = "RESIDUUM_STUDY_KILLS"  # the file in which workers note steps and saves


def counted(job: worker.Job) -> worker.Trained:
    """Train a cell as a worker does, and note in the file that `LOG` names each step taken and each state saved."""
    step, save, cell = loop.step, Run.save_state, Path(job.folder).name

    def note(what: str, number: int) -> None:
        with Path(os.environ[LOG]).open("a", encoding="utf-8") as file:
            file.write(f"{what} {number} {cell}\n")

    def noted_step(
        state: Any, net: Any, recipe: Any, images: Any, labels: Any, steps: int, *args: Any, **how: Any
    ) -> None:
        step(state, net, recipe, images, labels, steps, *args, **how)
        note("step", state.progress.epoch * steps + state.progress.step)

    def noted_save(run: Run, values: dict[str, Any]) -> None:
        save(run, values)
        progress = values["progress"]
        note("save", progress["epoch"] * len(progress["losses"]) + progress["step"])

    loop.step, Run.save_state = noted_step, noted_save  # type: ignore[assignment, method-assign]
    try:
        return worker.train(job)
    finally:
        loop.step, Run.save_state = step, save  # type: ignore[method-assign]


@dataclass(frozen=True)
class Steps:
    """Steps that were taken, those that a study has, those that a kill lost, and those taken again though saved."""

    taken: int
    planned: int
    lost: int
    saved_before: int


def steps_of(log: Path) -> Steps:
    """What workers noted, whose lines stand in the order in which they wrote them."""
    furthest: dict[str, int] = {}
    at: dict[str, int] = {}
    saved: dict[str, int] = {}
    taken = lost = again = 0
    for line in log.read_text(encoding="utf-8").splitlines():
        what, word, cell = line.split(" ", 2)
        number = int(word)
        if what == "save":
            saved[cell] = number
            continue
        taken += 1
        if number <= at.get(cell, 0):  # it went on from a save
            lost += at[cell] - saved.get(cell, 0)
            again += max(saved.get(cell, 0) - number + 1, 0)
        at[cell] = number
        furthest[cell] = max(furthest.get(cell, 0), number)
    return Steps(taken, sum(furthest.values()), lost, again)


def begin(study: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, as a user starts it; its workers note their steps."""
    line = [sys.executable, "-m", "residuum", "ablate", str(study), "--out", str(out)]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ, "RESIDUUM_TRAINER": "benchmarks.study_kills:counted", LOG: f"{out}.log",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }  # fmt: skip
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, env=env)


def found(out: Path) -> dict[str, object]:
    """What each cell has come to, but for times: its status, the digest of its weights, right images, its rows."""
    cells: dict[str, object] = {}
    for path in sorted(out.glob("cells/*/cell.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = path.with_name("metrics.jsonl")
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        kept = [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)} for line in lines]
        cells[path.parent.name] = [record["status"], record["weights"], record["correct"], kept]
    return cells


def results(out: Path) -> list[dict[str, str]]:
    """The lines of results.csv, but for times, and for the folder that the line which repeats a cell names."""
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return [{k: v for k, v in line.items() if not k.startswith((*TIMES, "command"))} for line in lines]


def begun(out: Path) -> dict[str, str]:
    """When each cell that has saved a state was begun from nothing."""
    records = ((path, json.loads(path.read_text(encoding="utf-8"))) for path in out.glob("cells/*/cell.json"))
    return {path.parent.name: record["begun"] for path, record in records if record["begun"]}


def kill_some(process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """SIGKILL for the parent, for its workers, or for all; a parent without workers goes on with new ones."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    chosen = chance.choice([everyone, everyone[:1], everyone[1:]])
    for one in chosen:
        with contextlib.suppress(psutil.Error):
            one.kill()
    if process.pid in [one.pid for one in chosen]:
        process.wait()


def _lines(out: Path) -> int:
    log = Path(f"{out}.log")
    return log.read_text(encoding="utf-8").count("step ") if log.exists() else 0


def disturbed(study: Path, out: Path, kills: int, steps: int, chance: random.Random) -> list[str]:
    """Run a study of so many steps to its end through so many kills; cells that were begun from nothing after a save.

    Kills come after random numbers of steps, so that they are spread over the study on a machine of any speed.
    """
    twice, seen, process = [], {}, begin(study, out)

    def look() -> None:
        now = begun(out)
        twice.extend(name for name, when in seen.items() if now.get(name) != when)
        seen.update(now)

    def running() -> subprocess.Popen[bytes]:
        nonlocal process
        if process.poll() is not None:  # of workers that were killed, the cells wait for the study to be run again
            assert process.returncode != 0, "the study ended before all kills had come"
            process = begin(study, out)
        return process

    for _ in range(kills):
        reached = _lines(out) + chance.randrange(1, max(4 * steps // (3 * kills), 2))
        while _lines(out) < reached:
            running()
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.1))
        look()
        kill_some(running(), chance)
    while (code := process.wait()) != 0:
        assert code in (3, -signal.SIGKILL), f"the study ended with {code}"
        process = begin(study, out)
    look()
    return twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        study = root / "study.toml"
        study.write_text(STUDY.format(seeds=args.seeds, epochs=args.epochs), encoding="utf-8")
        assert begin(study, root / "alone").wait() == 0
        usual = steps_of(root / "alone.log")
        twice = disturbed(study, root / "killed", args.kills, usual.planned, random.Random(0))
        one, two = found(root / "alone"), found(root / "killed")
        unlike = [name for name in one if one[name] != two.get(name)]
        print(f"{len(one)} cells, {args.kills} kills: {len(unlike)} differ, {len(twice)} begun again after a save")
        same = results(root / "alone") == results(root / "killed")
        print(f"results.csv is {'the same' if same else 'another'} but for times")
        steps = steps_of(root / "killed.log")
        print(
            f"{steps.taken:,} steps were taken for {usual.planned:,} planned ones; kills lost {steps.lost:,}, and "
            f"{steps.saved_before:,} that had been saved were taken again"
        )
        fewer = steps.taken <= usual.planned + steps.lost and not steps.saved_before
        sys.exit(not (same and fewer) or bool(unlike or twice or one.keys() != two.keys()))


if __name__ == "__main__":
    main()
