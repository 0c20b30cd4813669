"""Stand-ins for training: cells that take no time, and go wrong where a test wants them to."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

from residuum.ablate.cell import ChangedError, Trained
from residuum.ablate.cells import Record, lay_out
from residuum.ablate.runner import run
from residuum.ablate.study import Study
from residuum.errors import DivergedError
from residuum.train.processes import has_ended
from residuum.train.run import Run

ROOT = Path(__file__).parents[2]
FAKE = "tests.ablate.trainers:fake"
# Six variants that differ in what the network does not look at before it trains.
SIX = "name = 'six'\ndesign = 'list'\nseeds = 4\n[run]\ntimeout = '1s'\nthreads = 1\nworkers = 2\n" + "".join(
    f"[variant.v{i}]\nlabel_smoothing = {i / 100}\n" for i in range(6)
)
PATIENT = SIX.replace("'1s'", "'60s'")


def fake(job):
    """Numbers of the variant and the seed alone. `wrong.json` beside the cells says which go wrong and how."""
    folder, record = Path(job.folder), job.record
    study, name = folder.parents[1], f"{record['variant']} {record['seed']}"
    with (study / "calls.txt").open("a", encoding="utf-8") as calls:
        calls.write(name + "\n")
    wrong = study / "wrong.json"
    match json.loads(wrong.read_text())[name] if wrong.exists() and name in wrong.read_text() else "":
        case "raises":
            raise ValueError("no such thing")
        case "changed":
            raise ChangedError("the code has changed")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            time.sleep(60)
        case "diverges":
            raise DivergedError("the loss became nan")
        case "slow":
            time.sleep(0.5)
        case "forks":
            child = multiprocessing.get_context("fork").Process(target=int)
            child.start()
            child.join()
    folder.mkdir(parents=True, exist_ok=True)
    smoothing = job.recipe["loss.label_smoothing"]
    near = -abs(job.recipe["optimizer.lr"] - 0.2 - smoothing)  # which learning rate is best depends on the variant
    row = {"epoch": 1, "val_accuracy": 0.9 + near + record["seed"] % 7 / 1000, "val_loss": 0.3, "seconds": 0.1}
    if job.execution.get("test", True):
        row |= {"test_accuracy": 0.9 - smoothing + record["seed"] / 1000, "test_loss": 0.3}
    Run(folder).save_metrics([row])
    return Trained(weights=str(smoothing), split="test", correct="1101", measured={})


def watchful(job):
    """The stand-in, which takes a moment, and notes when a cell is trained again that was done, or twice at once.

    It goes on when no more cells have begun than `gate.txt` beside the study allows.
    """
    folder = Path(job.folder)
    study, name = folder.parents[1], folder.name
    running = study / f"running-{name}"

    def note(what):
        with (study / "noted.txt").open("a", encoding="utf-8") as file:
            file.write(f"{what} {name}\n")

    note("begin")
    record = Record.read(folder)
    if record is not None and record.status == "done":
        note("again")
    if running.exists() and not has_ended(int(running.read_text() or 0)):
        note("double")
    running.write_text(str(os.getpid()))
    time.sleep(random.uniform(0.05, 0.4))
    while begun(study) > int((study.parent / "gate.txt").read_text() or 0):  # empty while it is written
        time.sleep(0.02)
    found = fake(job)
    running.unlink(missing_ok=True)
    return found


def begun(study):
    """How many times `watchful` has begun a cell."""
    noted = study / "noted.txt"
    return noted.read_text(encoding="utf-8").count("begin ") if noted.exists() else 0


def calls(plan):
    """The cells that were trained, in order, `VARIANT SEED`."""
    path = plan.folder / "calls.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def planned(folder, text=SIX, **changes):
    """The plan of a study file in a folder; `changes` of the question, such as other seeds."""
    study = Study.from_toml(text)
    return lay_out(replace(study, question=replace(study.question, **changes)), folder)


def run_fake(plan, **how):
    """Run a plan with the stand-in; its outcome, and what was said."""
    said = []
    return run(plan, said.append, trainer=FAKE, **how), said
