"""A process that trains cells: jobs come in as JSON lines, what became of them goes out as such.

When its standard input ends, because the study is stopped or its process has died, training saves at its next step and
the process ends.
"""

import contextlib
import importlib
import json
import math
import os
import queue
import shutil
import signal
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from residuum.ablate.cell import ChangedError, Job, Trained, begin_or_go_on, now, scanned
from residuum.ablate.cells import TRACEBACK, Record, free_of_states
from residuum.ablate.locks import locked
from residuum.ablate.team import by_torchrun
from residuum.errors import DivergedError, ResiduumError, RunError, first_line
from residuum.files import write_text
from residuum.train.execution import Execution
from residuum.train.recipe import Recipe
from residuum.train.run import STATES, Run

TRAINER = "residuum.ablate.worker:train"


def main() -> None:
    """Take jobs until the input ends. What libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Processes that are forked, such as those that read images, close `sys.stdin`: they would wait for ever for whoever
    # reads it here.
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    jobs: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(lines, jobs, busy), daemon=True).start()

    def tell(**what: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody is left to be told
            out.write(json.dumps(what) + "\n")
            out.flush()

    module, _, name = os.environ.get("RESIDUUM_TRAINER", TRAINER).partition(":")
    trainer = getattr(importlib.import_module(module), name)
    tell(ready=os.getpid())
    while (line := jobs.get()) is not None:
        job = Job(**json.loads(line))
        try:
            with locked(Path(job.lock), Path(job.folder).name) if job.lock else contextlib.nullcontext():
                ended = _cell(job, trainer)
        except RunError as error:
            ended = {"status": "failed", "reason": str(error)}
        busy.clear()
        tell(**ended)


def _read(lines: Iterable[str], jobs: "queue.Queue[str | None]", busy: threading.Event) -> None:
    for line in lines:
        busy.set()
        jobs.put(line)
    jobs.put(None)
    if busy.is_set():
        signal.raise_signal(signal.SIGTERM)  # which training listens to: it saves at its next step


def _cell(job: Job, trainer: Any) -> dict[str, Any]:
    """Train a cell, write down how it ended, and say so."""
    folder, record = Path(job.folder), Record(**job.record)
    known, begun = Record.read(folder), now()
    if known is not None and known.key == record.key and known.status in ("done", "diverged"):
        return {"status": known.status, "reason": known.reason}  # another machine was quicker
    record = replace(record, begun=record.begun or begun, status="waiting", reason="")
    try:
        clear_unbegun(folder)
        found: Trained = trainer(job)
        if found.stopped:
            return {"status": "stopped"}
        rows = Run(folder).history()
        bad = [n for n, v in (rows[-1] if rows else {}).items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            raise DivergedError(f"{bad[0]} is no finite number after the last epoch")
        record = replace(
            record, status="done", weights=found.weights, split=found.split, correct=found.correct,
            measured=dict(found.measured or {}),
        )  # fmt: skip
    except ChangedError as error:
        return {"status": "changed", "reason": str(error)}  # which is no fault of this cell
    except DivergedError as error:
        record = replace(record, status="diverged", reason=str(error))
    except Exception as error:
        reason = str(error) if isinstance(error, ResiduumError) else f"{type(error).__name__}: {first_line(error)}"
        alone = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        text = traceback.format_exc()
        record = replace(record, status="failed", reason=reason, failures=record.failures + 1, alone=alone)
        try:
            record.write(folder)
            write_text(folder / TRACEBACK, text, RunError)
            leave_recipe(job.recipe, folder)
        except RunError as second:
            return {"status": "failed", "reason": f"{reason}; {second}"}
        return {"status": "failed", "reason": reason}
    try:
        replace(record, ended=now()).write(folder)
        leave_recipe(job.recipe, folder)
        free_of_states(folder, job.keep)
    except (RunError, OSError) as error:
        return {"status": "failed", "reason": str(error)}
    return {"status": record.status, "reason": record.reason}


def clear_unbegun(folder: Path) -> None:
    """Remove a folder without a state to go on from: what is in it belongs to a cell that is begun anew."""
    if folder.is_dir() and not any((folder / name).is_file() for name in STATES):
        shutil.rmtree(folder)


def leave_recipe(recipe: Mapping[str, Any], folder: Path) -> None:
    """A cell that failed before its run began can be repeated too."""
    if not (folder / "recipe.toml").is_file():
        write_text(folder / "recipe.toml", Recipe().replace(recipe).to_toml(), RunError)


def train(job: Job) -> Trained:
    """Train a cell by `residuum.train`, from where it was stopped if it was; raises what that raises."""
    from residuum.evaluation.runs import weights_digest

    run, execution = Run(Path(job.folder)), Execution(**job.execution)
    if job.processes > 1:
        trained = by_torchrun(job)
    else:
        warm_up(execution.device)
        trained = begin_or_go_on(job)
    if trained.stopped:
        return trained
    split, correct = right_images(run, execution) if execution.test else ("", "")
    return replace(trained, weights=weights_digest(run.weights), split=split, correct=correct)


@cache
def warm_up(name: str) -> None:
    """Take a step of a small network on a device, once in a process: its first step takes longer than any other.

    So the seconds of a worker's first cell are of training alone, as those of its other cells are.
    """
    import torch

    from residuum.devices import pick_device, set_up
    from residuum.presets import preset
    from residuum.train.session import generators_kept, make_network

    device = pick_device(name)
    set_up(device)
    with generators_kept(device):
        config = preset("digits_resnet")
        network = make_network(config, device, "fp32")
        images = torch.zeros(8, config.in_channels, 16, 16, device=device)
        for _ in range(2):
            network(images).sum().backward()


def right_images(run: Run, execution: Any) -> tuple[str, str]:
    """The split that a finished run is judged by, test or else val, and a 1 for each image that is right, 0 for others.

    Images come in the data's order, those that cannot be decoded left out. Without such a split both are empty.
    """
    import torch

    from residuum.data.sources import open_dataset
    from residuum.devices import pick_device
    from residuum.train.losses import answers
    from residuum.train.session import loader_for
    from residuum.weights.files import load

    recipe, device = run.recipe(), pick_device(execution.device)
    catalog = scanned(recipe.data.path)
    dataset = open_dataset(catalog, recipe.data, channels=recipe.model.in_channels, cache=execution.cache_folder)
    name, split = ("test", dataset.test) if dataset.test is not None else ("val", dataset.val)
    if split is None:
        return "", ""
    network = load(run.weights).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = loader_for(recipe, execution, dataset, split, device, train=False)
    right = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        for images, labels in loader.epoch(0):
            right += answers(network(images), labels).tolist()
    return name, "".join("1" if each else "0" for each in right)


if __name__ == "__main__":
    main()
