"""TensorBoard, W&B and MLflow: every epoch once, in order, whatever happened; what fails ends no training."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict

import pytest
from tests.train.runs import StopAfter, console, said, tiny

from residuum.errors import ConfigError, MissingExtraError
from residuum.train import Callback, Execution, fit, resume, trackers
from residuum.train.run import Run
from residuum.train.trackers import TensorBoard, Tracker


def rows(path):
    return Run(path).history()


def steps_of(folder):
    """Each tag's steps, in the order in which event files hold them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = defaultdict(list)
    for file in sorted(folder.iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name != "text":
                    found[value.tag].append((event.step, pytest.approx(value.tensor.float_val[0], rel=1e-6)))
    return dict(found)


def mirrors(path):
    """Whether TensorBoard has what metrics.jsonl has, each number of each epoch once and in order."""
    truth = defaultdict(list)
    for row in rows(path):
        for name, value in row.items():
            if name not in ("epoch", "data_digest"):  # text, which no chart can show
                truth[trackers._grouped(name)].append((row["epoch"], value))
    return dict(truth) == steps_of(path / "tensorboard")


# -- TensorBoard -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")


LOGGED = Execution(log=("tensorboard",))


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_mirrors_the_metrics(tmp_path):
    fit(tiny(), out=tmp_path / "run", execution=LOGGED, callbacks=[])
    assert mirrors(tmp_path / "run")
    assert [step for step, _ in steps_of(tmp_path / "run" / "tensorboard")["test/accuracy"]] == [2]


@pytest.mark.usefixtures("tensorboard")
def test_a_run_that_was_stopped_goes_on_logging(stopped, tmp_path):
    path = shutil.copytree(stopped.path, tmp_path / "run")
    TensorBoard(path, tiny(), []).end()  # a process of the same second
    resume(path, execution=LOGGED, callbacks=[])  # the first epoch was not logged; it is made up for
    assert mirrors(path)
    first, second = sorted(file.name.split(".")[3] for file in (path / "tensorboard").iterdir())
    assert first < second


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.slow
def test_from_the_state_before_no_epoch_is_logged_twice(tmp_path):
    path = tmp_path / "run"
    fit(tiny(epochs=3), out=path, execution=LOGGED, callbacks=[])
    assert len(steps_of(path / "tensorboard")["val/accuracy"]) == 3
    (path / "state.pt").write_bytes(b"damaged")
    (path / "state-previous.pt").unlink()
    # the state of the second epoch, as it was
    fit(tiny(epochs=3), out=tmp_path / "other", execution=Execution(test=False), callbacks=[])
    shutil.copy(tmp_path / "other" / "state-previous.pt", path)
    resume(path, execution=LOGGED, callbacks=[])
    for steps in steps_of(path / "tensorboard").values():
        assert [step for step, _ in steps] == sorted({step for step, _ in steps})


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.slow
@pytest.mark.parametrize("kills", [2])
def test_after_kills_at_any_time_every_epoch_is_logged_once(tmp_path, kills):
    path = tmp_path / "run"
    line = [
        sys.executable, "-m", "residuum", "train", "--epochs", "12", "--batch-size", "256", "--model.width", "0.25",
        "--precision", "fp32", "--log", "tensorboard",
    ]  # fmt: skip
    done = 0
    for kill in range(kills):
        more = ["--resume", str(path)] if path.exists() else ["--out", str(path)]
        process = subprocess.Popen([*line[:4], *more, *line[-2:]] if path.exists() else [*line, *more])
        try:
            while process.poll() is None and len(finished_rows(path)) < done + 2:
                time.sleep(0.01)
            time.sleep(0.02 * kill)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = len(finished_rows(path))
    resume(path, callbacks=[])
    assert len(rows(path)) == 12
    assert mirrors(path)


def finished_rows(path):
    file = path / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_a_file_that_is_cut_off_is_gone_on_from(tmp_path):
    path = tmp_path / "run"
    fit(tiny(epochs=3), out=path, execution=Execution(log=("tensorboard",), test=False), callbacks=[])
    (file,) = (path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    resume(path, execution=LOGGED, callbacks=[])
    assert mirrors(path)


# -- any service -------------------------------------------------------------------------------------------------------


class Kept(Tracker):
    """A service in memory, which is down when it is told to be."""

    name = "kept"

    def open(self, recipe):
        self.rows, self.down, self.flushed = [], False, 0

    def log(self, epoch, numbers):
        if self.down:
            raise ConnectionError("no route to host\nand more")
        self.rows.append((epoch, dict(numbers)))

    def flush(self):
        self.flushed += 1


class Said(Callback):
    def __init__(self):
        self.lines = []

    def say(self, topic, text):
        self.lines.append((topic, text))


def test_a_row_is_logged_when_it_is_saved_and_what_is_added_to_it_later(tmp_path):
    kept = Kept(tmp_path, tiny(), [])
    kept.epoch({"epoch": 1, "loss": 2.0}, 2)
    assert kept.rows == []
    row = {"epoch": 1, "loss": 2.0}
    for rows in ([], [row], [row], [row | {"test_loss": 1.0}]):
        kept.saved(rows)
    assert kept.rows == [(1, {"loss": 2.0}), (1, {"test_loss": 1.0})]
    assert kept.flushed == 2


def test_a_service_that_is_down_is_told_once_and_made_up_for(tmp_path):
    listener = Said()
    kept = Kept(tmp_path, tiny(), [listener])
    history = [{"epoch": n, "loss": float(n)} for n in (1, 2, 3)]
    kept.down = True
    kept.saved(history[:1])
    kept.saved(history[:2])
    kept.down = False
    kept.saved(history)
    assert [epoch for epoch, _ in kept.rows] == [1, 2, 3]
    ((topic, text),) = listener.lines
    assert (topic, "no route to host" in text, "metrics.jsonl" in text, "\n" in text) == ("log", True, True, False)


def test_a_service_that_cannot_be_closed_ends_no_training(tmp_path):
    class Stuck(Kept):
        def close(self):
            raise OSError("no space left")

    listener = Said()
    Stuck(tmp_path, tiny(), [listener]).end()
    assert "no space left" in listener.lines[0][1]


def test_a_run_that_logged_goes_on_without(command, stopped, tmp_path):
    path = shutil.copytree(stopped.path, tmp_path / "run")
    (path / "execution.toml").write_text(Execution(log=("mlflow",)).to_toml())
    assert command("train", "--resume", path, "--log").code == 0
    assert Run(path).read()[1].log == ()
    assert not (path / "trackers.json").exists()


def test_a_library_that_is_missing_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r'wandb.*"residuum-nn\[wandb\]"'):
        fit(tiny(), out=tmp_path / "run", execution=Execution(log=("wandb",)), callbacks=[])
    assert not (tmp_path / "run").exists()


def test_a_service_that_does_not_begin_leaves_no_run(tmp_path, monkeypatch):
    from residuum.errors import RunError

    class Broken(Kept):
        def open(self, recipe):
            raise OSError("there is no such server")

    monkeypatch.setattr(trackers, "TensorBoard", Broken)
    monkeypatch.setattr(trackers, "need_trackers", lambda execution: None)
    monkeypatch.setattr("residuum.train.session.need_trackers", lambda execution: None)
    with pytest.raises(RunError, match="tensorboard cannot be logged to: there is no such server"):
        fit(tiny(), out=tmp_path / "run", execution=LOGGED, callbacks=[])
    assert not (tmp_path / "run").exists()


def test_an_unknown_service_is_refused():
    with pytest.raises(ConfigError, match="log"):
        Execution(log=("comet",))


def test_the_execution_with_services_is_read_back():
    execution = Execution(log=("tensorboard", "mlflow"))
    assert Execution.from_toml(execution.to_toml()) == execution


# -- MLflow and W&B ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflow_has_one_run_that_goes_on(stopped, each_step, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    path = shutil.copytree(stopped.path, tmp_path / "run")
    execution = Execution(log=("mlflow",))
    resume(path, execution=execution, callbacks=[StopAfter(1)])
    note = json.loads((path / "trackers.json").read_text())["mlflow"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(path, callbacks=[])
    assert json.loads((path / "trackers.json").read_text())["mlflow"] == note
    client = MlflowClient(note["uri"])
    for name in ("val_accuracy", "train_loss"):
        history = client.get_metric_history(note["run_id"], name)
        assert [(m.step, m.value) for m in history] == [(row["epoch"], row[name]) for row in rows(path)]
    run = client.get_run(note["run_id"])
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_has_one_id_and_each_epoch_once(stopped, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = shutil.copytree(stopped.path, tmp_path / "run")
    text = io.StringIO()
    resume(path, execution=Execution(log=("wandb",), test=False), callbacks=[console(text)])
    first = json.loads((path / "trackers.json").read_text())["wandb"]
    assert first["last"]["val_accuracy"] == 2
    resume(path, execution=Execution(log=("wandb",)), callbacks=[])
    second = json.loads((path / "trackers.json").read_text())["wandb"]
    assert second["id"] == first["id"]
    assert second["last"]["test_accuracy"] == 2
    files = sorted((path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert all(first["id"] in file.name for file in files)
    assert [step for file in files for step in wandb_steps(file)] == [1, 2]
    assert not [line for line in said(text) if line.startswith("log")]


def wandb_steps(file):
    """The steps of the history that an offline run's file holds: LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, steps, whole, place = file.read_bytes(), [], b"", 7  # after a heading
    while place + 7 <= len(content):
        if place % 2**15 > 2**15 - 7:  # no room for a heading at a block's end
            place += -place % 2**15
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of its parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps
