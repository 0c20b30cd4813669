"""TensorBoard, W&B and MLflow: callbacks that mirror `metrics.jsonl`, which stays the truth.

A row is logged once the state that contains it is saved, so that no resuming undoes what was logged; one that a crash
kept from being logged is made up for when the run goes on. What is there already is read from TensorBoard's and
MLflow's own records; W&B's lie elsewhere, so a file in the run folder says what it was given.
"""

import contextlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from residuum.errors import RunError, first_line, quoted
from residuum.extras import need
from residuum.files import write_text
from residuum.train.execution import Execution, Service
from residuum.train.loggers import Callback
from residuum.train.recipe import Recipe

NOTES = "trackers.json"  # in the run folder: what identifies the run elsewhere
_LIBRARIES: dict[Service, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow.tracking"}


def need_trackers(execution: Execution) -> None:
    """Raise `MissingExtraError` where the library of a service is not installed."""
    for service in execution.log:
        need(_LIBRARIES[service], extra=service)


def open_trackers(
    execution: Execution, path: Path, recipe: Recipe, others: Sequence[Callback]
) -> tuple["Tracker", ...]:
    """A callback for each service of `execution.log`; `others` are told what goes wrong.

    Raises `RunError` where a service cannot be begun with.
    """
    kinds: dict[Service, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    trackers: list[Tracker] = []
    for service in dict.fromkeys(execution.log):
        try:
            trackers.append(kinds[service](path, recipe, others))
        except RunError:
            raise
        except Exception as error:  # each of the three raises kinds of its own
            raise RunError(f"{service} cannot be logged to: {first_line(error)}; leave it out of --log") from error
    return tuple(trackers)


class Tracker(Callback, ABC):
    """Gives a service the numbers of each row that it does not have; a number's step is its epoch."""

    name: str

    def __init__(self, path: Path, recipe: Recipe, others: Sequence[Callback]) -> None:
        self.path, self.others, self.failed = path, others, False
        self.last: dict[str, int] = {}  # name of a number to the last epoch of which the service has it
        self.open(recipe)

    @abstractmethod
    def open(self, recipe: Recipe) -> None:
        """Begin or go on, and find `last`."""

    @abstractmethod
    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log numbers of an epoch."""

    def flush(self) -> None:
        """What was logged is kept, whatever happens to this process."""

    def saved(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log what is new. What fails is said once, and tried again the next time."""
        try:
            new = False
            for row in rows:
                epoch = row["epoch"]
                numbers = {
                    name: float(value)
                    for name, value in row.items()
                    if name != "epoch" and isinstance(value, int | float) and self.last.get(name, 0) < epoch
                }
                if numbers:
                    self.log(epoch, numbers)
                    self.last |= dict.fromkeys(numbers, epoch)
                    new = True
            if new:
                self.flush()
        except Exception as error:  # a service that is down ends no training
            self._fail(error)

    def close(self) -> None:
        """Nothing more is logged by this process."""

    def end(self) -> None:
        """Closes; what fails is said."""
        try:
            self.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self.failed:
            for callback in self.others:
                text = f"{self.name} could not be logged to ({first_line(error)}); metrics.jsonl has all numbers"
                callback.say("log", text)
        self.failed = True


class TensorBoard(Tracker):
    """Event files in `tensorboard` in the run folder."""

    name = "tensorboard"

    def open(self, recipe: Recipe) -> None:
        """A new event file beside those that are there."""
        folder = self.path / "tensorboard"
        self.last = logged_by_tensorboard(folder)
        _await_next_second(folder)
        self.writer = need("torch.utils.tensorboard", extra="tensorboard").SummaryWriter(str(folder), flush_secs=10**6)
        if not self.last:
            self.writer.add_text("recipe", "```toml\n" + recipe.to_toml() + "```", 0)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in numbers.items():
            self.writer.add_scalar(_grouped(name), value, epoch)

    def flush(self) -> None:
        """To the disk."""
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


def logged_by_tensorboard(folder: Path) -> dict[str, int]:
    """Name of a number to the last epoch of which event files in a folder have it; one that is cut off ends there."""
    if not folder.is_dir():
        return {}
    reading = need("tensorboard.backend.event_processing.event_accumulator", extra="tensorboard")
    events = reading.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    with contextlib.suppress(Exception):
        events.Reload()
    return {tag.replace("/", "_"): max(event.step for event in events.Scalars(tag)) for tag in events.Tags()["scalars"]}


def _await_next_second(folder: Path) -> None:
    """Event files are read in the order of their names, which hold the second: two of one second could be swapped."""
    stamps = [int(part) for file in folder.glob("events.out.tfevents.*") if (part := file.name.split(".")[3]).isdigit()]
    wait = max(stamps, default=0) + 1 - time.time()
    time.sleep(min(max(wait, 0.0), 1.0))  # another machine's clock may be far ahead


def _grouped(name: str) -> str:
    """`train_loss` as `train/loss`, which TensorBoard and W&B show in a group."""
    first, _, rest = name.partition("_")
    return f"{first}/{rest}" if first in ("train", "val", "test", "seconds") and rest else name


class WandB(Tracker):
    """A run of Weights & Biases; project, mode and folder are what its own settings and environment say."""

    name = "wandb"

    def open(self, recipe: Recipe) -> None:
        """Begin the run, or go on with it by its id."""
        wandb = need("wandb", extra="wandb")
        notes = read_notes(self.path)
        self.notes = notes.get("wandb") or {"id": uuid4().hex[:12], "last": {}}
        self.last = dict(self.notes["last"])
        self.run = wandb.init(
            id=self.notes["id"],
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "residuum"),
            name=os.environ.get("WANDB_NAME", self.path.name),
            dir=os.environ.get("WANDB_DIR", str(self.path.absolute())),
            config=recipe.to_dict(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._note()

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """A line of its history; of an epoch that it has, the service takes no second one, but the summary."""
        values = {_grouped(name): value for name, value in numbers.items()}
        if self.last and epoch <= max(self.last.values()):  # the test split's, which come last
            self.run.summary.update(values)
        else:
            self.run.log(values | {"epoch": epoch}, step=epoch, commit=True)

    def flush(self) -> None:
        """Note what was given."""
        self._note()

    def _note(self) -> None:
        write_note(self.path, "wandb", self.notes | {"last": self.last})

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class MLflow(Tracker):
    """A run of MLflow, at the tracking URI and in the experiment that its own settings and environment say."""

    name = "mlflow"

    def open(self, recipe: Recipe) -> None:
        """Begin the run, or go on with it by its id."""
        entities, client = need("mlflow.entities", extra="mlflow"), need("mlflow.tracking", extra="mlflow").MlflowClient
        self.metric = entities.Metric
        note = read_notes(self.path).get("mlflow")
        if note is not None:
            self.client, self.id = client(note["uri"]), note["run_id"]
            self.client.update_run(self.id, status="RUNNING")
            for name in self.client.get_run(self.id).data.metrics:
                self.last[name] = max(metric.step for metric in self.client.get_metric_history(self.id, name))
            return
        uri = _lasting(str(need("mlflow", extra="mlflow").get_tracking_uri()))
        self.client = client(uri)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "residuum")
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known is not None else self.client.create_experiment(experiment)
        self.id = self.client.create_run(number, run_name=self.path.name).info.run_id
        params = [entities.Param(name, str(value)) for name, value in recipe.to_dict().items()]
        for begin in range(0, len(params), 100):  # as many as one call takes
            self.client.log_batch(self.id, params=params[begin : begin + 100])
        write_note(self.path, "mlflow", {"uri": uri, "run_id": self.id})

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """A metric each."""
        now = int(1000 * time.time())
        metrics = [self.metric(name, value, now, epoch) for name, value in numbers.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        """The run is over, until it is resumed."""
        self.client.set_terminated(self.id)


def _lasting(uri: str) -> str:
    """A tracking URI that means the same from any folder."""
    for begin in ("sqlite:///", "file:"):
        rest = uri.removeprefix(begin)
        if rest != uri and not rest.startswith("/"):
            return f"{begin}{Path(rest).absolute()}"
    return uri


def read_notes(path: Path) -> dict[str, Any]:
    """What the run is called elsewhere, by service; raises `RunError` for a file that is damaged."""
    file = path / NOTES
    if not file.exists():
        return {}
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(notes, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError) as error:
        raise RunError(f"{NOTES} in {quoted(str(path))} cannot be read: {first_line(error)}; remove it") from None
    return notes


def write_note(path: Path, service: Service, note: Mapping[str, Any]) -> None:
    """Keep what a service calls the run."""
    write_text(path / NOTES, json.dumps(read_notes(path) | {service: note}, indent=1) + "\n", RunError)
