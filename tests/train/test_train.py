"""Training end to end: it learns, repeats itself to the bit, resumes exactly, and loses nothing when it fails."""

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from residuum.data.catalog import facts
from residuum.devices import pick_device
from residuum.errors import DataError, DeviceError, DivergedError, RunError
from residuum.train import loop
from residuum.train.loggers import Reporter
from residuum.train.recipe import default_recipe
from residuum.train.run import Run, free_folder

FILES = {"config.toml", "metrics.jsonl", "weights.safetensors", "state.pt", "curves.png"}


def quiet():
    return Reporter(Console(file=io.StringIO()))


def recipe(data="digits", **changes):
    base = default_recipe(facts(str(data)))
    model = base.model.replace(width=0.5, stochastic_depth=0.2, dropout=0.1)
    return base.replace(**{"model": model, "epochs": 2, "batch_size": 256, "precision": "fp32"} | changes)


def train(out, made=None, reporter=None):
    made = made or recipe()
    return loop.start(made, facts(made.data), out, out.parent, reporter or quiet())


class Interrupt(Reporter):
    """Sends the process a signal after so many steps."""

    def __init__(self, after, number=signal.SIGTERM):
        super().__init__(Console(file=io.StringIO()))
        self.left, self.number = after, number

    def step(self, session, images):
        super().step(session, images)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def same(one, two):
    a, b = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_a_whole_folder(tmp_path):
    outcome = train(tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1] == outcome.metrics
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, recipe(seed=seed))
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 5, 7])  # five steps an epoch: within, at the end, in the next
def test_an_interrupted_run_resumes_to_the_very_weights(tmp_path, after, number):
    changes = {"precision": "bf16"} if number == signal.SIGINT else {}
    train(tmp_path / "whole", recipe(**changes))
    outcome = train(tmp_path / "cut", recipe(**changes), Interrupt(after, number))
    assert outcome.stopped_by == number
    assert not same(tmp_path / "whole", tmp_path / "cut")
    run, saved = Run.open(tmp_path / "cut")
    again = loop.resume(run, saved, facts("digits"), tmp_path, quiet())
    assert again.stopped_by is None
    assert same(tmp_path / "whole", tmp_path / "cut")
    times = ("seconds", "images_per_second")
    for one, two in zip(*(_rows(tmp_path / name) for name in ("whole", "cut")), strict=True):
        assert {k: v for k, v in one.items() if k not in times} == {k: v for k, v in two.items() if k not in times}


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_files_with_workers_resumes_exactly(tmp_path, image_folder):
    root = image_folder(side=80)
    made = recipe(root, image_size=32, batch_size=8, workers=2)
    train(tmp_path / "whole", made)
    train(tmp_path / "cut", made, Interrupt(2))
    run, saved = Run.open(tmp_path / "cut")
    loop.resume(run, saved, facts(str(root)), tmp_path, quiet())
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tmp_path / "run", reporter=Interrupt(3))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path):
    class Poison(Interrupt):
        def step(self, session, images):
            self.left -= 1
            if self.left == 0:
                torch.nn.init.constant_(session.model.fc.weight, float("nan"))

    with pytest.raises(DivergedError, match="nan in epoch 2, step 3 of 5.*last good state.*lower learning rate"):
        train(tmp_path / "run", reporter=Poison(7))
    run, _ = Run.open(tmp_path / "run")
    state = run.load_state()
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(t.isfinite().all() for t in state["model"].values())
    assert all(t.isfinite().all() for t in load_file(run.weights).values())


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    train(tmp_path / "run")
    run, saved = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="complete: all 2 epochs"):
        loop.resume(run, saved, facts("digits"), tmp_path, quiet())


@pytest.mark.parametrize("damage", ["truncated", "emptied", "other", "removed"])
def test_a_state_that_is_damaged_is_refused(tmp_path, damage):
    train(tmp_path / "run", reporter=Interrupt(3))
    path = tmp_path / "run" / "state.pt"
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    before = load_file(tmp_path / "run" / "weights.safetensors")
    with pytest.raises(RunError) as caught:
        run, saved = Run.open(tmp_path / "run")
        loop.resume(run, saved, facts("digits"), tmp_path, quiet())
    assert "state" in str(caught.value)
    assert "\n" not in str(caught.value)
    after = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_state_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", reporter=Interrupt(3))
    torch.save({"format": 1, "model": Evil()}, tmp_path / "run" / "state.pt")
    run, _ = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="damaged"):
        run.load_state()
    assert not (tmp_path / "evil").exists()


def test_a_state_of_another_network_is_refused(tmp_path):
    train(tmp_path / "run", reporter=Interrupt(3))
    run, saved = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="does not fit"):
        loop.resume(run, saved.replace(model=saved.model.replace(width=1.0)), facts("digits"), tmp_path, quiet())


def test_data_that_changed_since_is_refused(tmp_path, image_folder):
    root = image_folder(side=16)
    train(tmp_path / "run", recipe(root, batch_size=4), Interrupt(3))
    for i in range(4):
        (root / "train" / "red" / f"{i}.png").unlink()
    run, saved = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="data has changed"):
        loop.resume(run, saved, facts(str(root)), tmp_path, quiet())


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already.*--out.*--resume"):
        train(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        train(tmp_path / "file" / "run")


def test_bad_images_from_the_start_leave_no_folder(tmp_path, image_folder):
    root = image_folder(side=80)
    (root / "train" / "red" / "0.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="red/0.png"):
        train(tmp_path / "run", recipe(root, image_size=32, batch_size=8, workers=0))
    assert not (tmp_path / "run").exists()


def test_bad_images_can_be_left_out_and_are_named(tmp_path, image_folder):
    root = image_folder(side=80)
    (root / "train" / "red" / "0.png").write_bytes(b"junk")
    out = io.StringIO()
    made = recipe(root, image_size=32, batch_size=8, workers=0, skip_bad_images=True)
    train(tmp_path / "run", made, Reporter(Console(file=out, width=500)))
    assert "left out" in out.getvalue()
    assert "red/0.png" in out.getvalue()


FULL_DISK = """
import resource, sys, signal
from pathlib import Path
from residuum.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["residuum", "train", "--epochs", "1", "--model.width", "0.5", "--out", {out!r}]
main()
"""


def test_a_disk_that_is_full_is_said_so_and_leaves_nothing(tmp_path):
    """A limit on file sizes stands for the full disk: writing fails part of the way."""
    code = FULL_DISK.format(limit=20_000, out=str(tmp_path / "run"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_later_keeps_the_last_saved_state(tmp_path, monkeypatch):
    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    class Fill(Interrupt):
        def epoch(self, row, epochs):
            if row["epoch"] == 2:
                monkeypatch.setattr(torch, "save", full)

    with pytest.raises(RunError, match="cannot write .*state.pt: No space left"):
        train(tmp_path / "run", reporter=Fill(0))
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "run").iterdir() if "partial" in p.name]
    run, saved = Run.open(tmp_path / "run")
    assert run.load_state()["epoch"] == 1
    train(tmp_path / "whole")
    loop.resume(run, saved, facts("digits"), tmp_path, quiet())
    assert same(tmp_path / "run", tmp_path / "whole")


def test_runs_are_numbered(tmp_path):
    assert free_folder(tmp_path, "digits").name == "digits-1"
    (tmp_path / "digits-1").mkdir()
    assert free_folder(tmp_path, "digits").name == "digits-2"
    assert free_folder(tmp_path, "/some/where/birds/").name == "birds-1"


@pytest.mark.parametrize("name", ["cuda:77", "gpu", "meta", "cpu:3", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError, match="this machine has cpu"):
        pick_device(name)


def test_the_cpu_is_always_there():
    assert pick_device("cpu").type == "cpu"


def test_the_learning_rate_rises_straight_and_falls_along_a_cosine():
    shape = [loop.rate(step, total=20, warmup=0.25) for step in range(20)]
    assert shape[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shape[5] == 1.0
    assert shape[12] == pytest.approx((1 + math.cos(math.pi * 7 / 15)) / 2)
    assert 0 < shape[-1] < 0.02
    for total in (1, 2, 3):  # the shortest runs
        assert all(0 < loop.rate(step, total=total, warmup=w) <= 1 for step in range(total) for w in (0.0, 0.1, 0.99))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_default_run_learns_the_digits(tmp_path, seed):
    outcome = train(tmp_path / "run", default_recipe(facts("digits")).replace(seed=seed))
    assert outcome.metrics["test_accuracy"] >= 0.985
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20
