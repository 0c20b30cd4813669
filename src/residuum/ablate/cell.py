"""A cell of a study: what there is to train, what came of it, and the training of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from residuum.ablate.cells import Record
from residuum.errors import RunError
from residuum.train.execution import Execution
from residuum.train.recipe import Recipe
from residuum.train.run import Run


class ChangedError(RunError):
    """The package's code or the data is no longer that of the study: no cell of it can be trained."""


@dataclass(frozen=True)
class Job:
    """A cell to train: its recipe by dotted names, its folder, its record so far, and how it is carried out."""

    recipe: Mapping[str, Any]
    folder: str
    record: Mapping[str, Any]
    execution: Mapping[str, Any]
    keep: str
    data: str  # digest of the data that the study is of
    processes: int = 1  # that train it together
    lock: str = ""  # file to hold while it is trained, where others might train it too


@dataclass(frozen=True)
class Trained:
    """What training a cell gave; `stopped` where it was stopped before its end, and is to go on."""

    stopped: bool = False
    weights: str = ""
    split: str = ""
    correct: str = ""
    measured: Mapping[str, float] | None = None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def scanned(path: str) -> Any:
    from residuum.data.catalog import scan

    return scan(path)


def begin_or_go_on(job: Job) -> Trained:
    """Train a cell in this process, or with the others of its team, without a look at the weights that come out."""
    import torch

    from residuum.devices import pick_device
    from residuum.train import environment
    from residuum.train.loggers import Callback
    from residuum.train.session import begin_or_resume

    recipe, execution, run = Recipe().replace(job.recipe), Execution(**job.execution), Run(Path(job.folder))
    record = Record(**job.record)
    if environment.code_digest() != record.code:
        raise ChangedError(
            "the package's code has changed since the study was begun; begin it again with the same line"
        )
    catalog = scanned(recipe.data.path)
    if catalog.digest != job.data:
        raise ChangedError(f"{catalog.name} has changed since the study was begun; begin it again with the same line")
    device = pick_device(execution.device)

    class Noting(Callback):
        """Leaves the cell's record in its folder as soon as there is a state to go on from."""

        def saved(self, rows: Any) -> None:
            if Record.read(run.path) is None:
                replace(record, begun=record.begun or now()).write(run.path)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result = begin_or_resume(recipe, out=run.path, execution=execution, callbacks=[Noting()], catalog=catalog)
    peak = {"peak_memory": float(torch.cuda.max_memory_allocated(device))} if device.type == "cuda" else {}
    return Trained(stopped=result.stopped_by is not None, measured=peak)
