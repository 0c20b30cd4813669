"""Several processes train one run: the same weights as one, one voice, and an end for all when one fails."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.train.processes import PerRank, in_processes, started, state_of
from tests.train.runs import assert_near, halted, tiny

from residuum.errors import ConfigError, DataError, DivergedError, RunError
from residuum.train import Execution, Recipe, fit, loop, resume
from residuum.train import run as run_module
from residuum.train.run import Run

SMALL = {
    "epochs": 1, "batch_size": 64, "norm_batch": 16, "model.depths": (1, 1), "model.widths": (8, 16),
    "model.activation": "silu",  # whose slope has no step, which rounding of gradients could cross
}  # fmt: skip
WAYS = {
    "plain": {},
    "dropped branches of a chunk": {"model.stochastic_depth": 0.5, "model.stochastic_depth_mode": "batch"},
    "dropped branches of images": {"model.stochastic_depth": 0.3, "model.dropout": 0.2},
    "mixed": {"mixing.mixup": 0.2, "mixing.cutmix": 1.0, "average.window": 0.2},
    "a chunk a process": {"norm_batch": 32},
    "thawed": {"finetune.freeze": 1, "finetune.thaw": 0.5, "finetune.weights": "set below"},
}  # fmt: skip


def recipe(way="plain", **changes):
    return tiny(**({"model.stochastic_depth": 0.0, "model.dropout": 0.0} | SMALL | WAYS[way] | changes))


def trained(recipes, folder):
    return [fit(one, out=Path(folder) / name, callbacks=[]).history for name, one in recipes.items()]


def rows(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


TOGETHER = pytest.mark.xdist_group("one, two and three processes")  # one worker has them all, and makes the runs once


@pytest.fixture(scope="module")
def by_world(tmp_path_factory):
    """The folder of runs of each way, by the number of processes that trained them."""
    start = fit(recipe(seed=5), out=tmp_path_factory.mktemp("start") / "run", callbacks=[]).path
    weights = {"finetune.weights": str(start / "weights.safetensors")}
    recipes = {way: recipe(way, **(weights if way == "thawed" else {})) for way in WAYS}
    folders = {}
    for world in (1, 2, 3):
        folders[world] = tmp_path_factory.mktemp(f"world{world}")
        mine = {way: one for way, one in recipes.items() if world < 3 or one.norm_batch == 16}
        found = in_processes(world, trained, mine, folders[world])
        assert all(isinstance(history, list) for history in found), found
    return folders


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_one_process_and_two_train_to_the_very_same_weights(by_world, way):
    one, two = (state_of(by_world[world] / way) for world in (1, 2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = (rows(by_world[world] / way)[0] for world in (1, 2))
    for name in ("train_loss", "train_accuracy", "val_accuracy", "data_digest", "test_accuracy"):
        assert first[name] == second[name], name
    assert first["val_loss"] == pytest.approx(second["val_loss"], rel=1e-6)


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "a chunk a process"])
def test_processes_with_unlike_shares_train_to_the_same_weights(by_world, way):
    """Two chunks, one and one: three processes add gradients in another order."""
    assert_near(state_of(by_world[1] / way), state_of(by_world[3] / way))
    assert rows(by_world[1] / way)[0]["data_digest"] == rows(by_world[3] / way)[0]["data_digest"]


def resumed(folder):
    return resume(folder, callbacks=[])


@TOGETHER
@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one_or_three(by_world, tmp_path):
    whole, results = state_of(by_world[1] / "plain"), {}
    for world in (1, 3):
        stopped = in_processes(2, halted, recipe(), tmp_path / f"{world}", 7)
        assert [result.stopped_by for result in stopped] == [signal.SIGTERM] * 2
        assert Run(tmp_path / f"{world}").load_state()[0]["progress"]["step"] == 7
        results[world] = in_processes(world, resumed, tmp_path / f"{world}")
        assert {len(result.history) for result in results[world]} == {1}
        assert rows(tmp_path / f"{world}")[0]["data_digest"] == rows(by_world[1] / "plain")[0]["data_digest"]
    assert all(torch.equal(value, state_of(tmp_path / "1")[name]) for name, value in whole.items())
    assert_near(whole, state_of(tmp_path / "3"))


# -- one voice ---------------------------------------------------------------------------------------------------------


def commanded(*args):
    """The command line in a process; its exit code and what it said."""
    import contextlib
    import io
    import sys

    from residuum import cli

    sys.argv = ["residuum", "train", *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code, out.getvalue(), err.getvalue()


LINE = ("--epochs", 1, "--batch-size", 256, "--model.width", 0.25, "--precision", "fp32")


@pytest.mark.slow
def test_the_first_process_alone_prints(tmp_path):
    (first, out, _), (second, nothing, err) = in_processes(2, commanded, *LINE, "--out", tmp_path / "run")
    assert (first, second) == (0, 0)
    assert "chunks     2 a step, of 128 images each, in 2 processes" in out
    assert (nothing, err) == ("", "")
    assert Run(tmp_path / "run").read()[0].norm_batch == 128


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--batch-size", 255), "cannot be shared by 2 processes alike.*--norm-batch"),
        (("--norm-batch", 256), "1 chunk of norm_batch 256, too few for 2 processes.*--sync-norm"),
        (("--data", "nowhere"), "nowhere"),
        (
            ("--norm-batch", 128, PerRank(["--sync-norm", "--no-sync-norm"])),
            "process 1 of 2 has other work than the first: sync_norm is False",
        ),
        (("--lr", PerRank([0.1, 0.2])), "process 1 of 2 has other work than the first: optimizer.lr is 0.2"),
        (("--data", PerRank(["digits", "nowhere"])), "nowhere"),
    ],
)
def test_a_mistake_is_said_once_and_ends_all(tmp_path, line, says):
    import re

    found = in_processes(2, commanded, *LINE, "--out", tmp_path / "run", *line)
    assert [code for code, _, _ in found] == [2, 2]
    assert re.search(says, " ".join(found[0][2].split()))
    assert found[1][1:] == ("", "")
    assert not (tmp_path / "run").exists()


# -- one end -----------------------------------------------------------------------------------------------------------


def failing(one, out, how):
    """A run in which the process of some rank fails in some way."""
    from residuum.train.distributed import join

    rank = join(60.0).rank
    if how == "disk" and rank == 0:
        plain = run_module.Run.save_state

        def full(self, values):
            if values["progress"]["epoch"]:
                raise RunError("cannot write state.pt: No space left on device")
            plain(self, values)

        run_module.Run.save_state = full
    if how in ("image", "first image") and rank == 1:
        from residuum.data.loaders import MemoryLoader

        plain_epoch = MemoryLoader.epoch

        def broken(self, number, start=0):
            for step, batch in enumerate(plain_epoch(self, number, start), start):
                if (number, step) == ((1, 2) if how == "image" else (0, 0)):
                    raise DataError("broken.jpg cannot be decoded")
                yield batch

        MemoryLoader.epoch = broken
    if how == "nan":
        from residuum.train.step import Counted

        chunks, count = loop.train_chunks, 0

        def diverging(*args, **more):
            nonlocal count
            count += 1
            loss, correct = chunks(*args, **more)
            return Counted(loss * float("nan") if count == 7 and rank == 1 else loss, correct)

        loop.train_chunks = diverging
    return fit(one, out=out, callbacks=[])


ENDS = {
    "disk": (RunError, "No space left", (0, 0)),
    "image": (DataError, "broken.jpg", (1, 2)),
    "nan": (DivergedError, "the loss became nan in epoch 2, step 2 of 5", (1, 0)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_what_fails_in_one_process_is_raised_in_all_and_what_was_saved_stays(tmp_path, how):
    kind, says, place = ENDS[how]
    found = in_processes(2, failing, tiny(norm_batch=128), tmp_path / "run", how)
    assert [type(error) for error in found] == [kind, kind], found
    assert all(says in str(error) and error.speaker == 0 for error in found)
    progress = Run(tmp_path / "run").load_state()[0]["progress"]
    assert (progress["epoch"], progress["step"]) == place


@pytest.mark.slow
def test_an_image_that_fails_at_the_start_in_any_process_leaves_nothing(tmp_path):
    found = in_processes(2, failing, tiny(norm_batch=128), tmp_path / "run", "first image")
    assert [type(error) for error in found] == [DataError, DataError], found
    assert not (tmp_path / "run").exists()


def endless(one, out):
    return fit(one, out=out, execution=Execution(timeout=20.0), callbacks=[])


def begun(folder, seconds=30.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    return (folder / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_is_named_by_the_others(tmp_path, victim):
    with started(2, endless, tiny(norm_batch=128, epochs=1000), tmp_path / "run") as running:
        assert begun(tmp_path / "run")
        os.kill(running[victim][0].pid, signal.SIGKILL)
        pipe = running[1 - victim][1]
        assert pipe.poll(20)
        error = pipe.recv()
    assert type(error) is RunError
    assert f"process {victim} (process id" in str(error)
    assert "--resume" in str(error)
    assert error.speaker == 1 - victim


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_at_one_step(tmp_path):
    with started(2, endless, tiny(norm_batch=128, epochs=1000), tmp_path / "run") as running:
        assert begun(tmp_path / "run")
        os.kill(running[1][0].pid, signal.SIGTERM)
        results = [pipe.recv() for _, pipe in running if pipe.poll(20)]
    assert [result.stopped_by for result in results] == [signal.SIGTERM] * 2
    assert results[0].history == results[1].history or len(results[0].history) == len(results[1].history)


# -- evaluation and data -----------------------------------------------------------------------------------------------


def evaluated(root, count):
    from residuum.train.distributed import join

    team = join(60.0)
    one = tiny(root, **{"batch_size": 7 * team.world, "data.holdout": 0.0, "model.stochastic_depth": 0.0})
    from residuum.data.catalog import scan
    from residuum.train.session import prepare

    job = prepare(one, Execution(workers=1), scan(root), torch.device("cpu"), [], team=team)
    found = loop.look_at(job.state.result, job.loader(job.dataset.test), "test", one, (), team)
    return found.correct, found.images, found.total


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 80])
def test_evaluation_counts_each_image_once_in_whole_numbers(image_folder, side):
    """101 images, whole in memory or read by a worker of each process; and a process may have none."""
    root = image_folder(side=side, train=7, test=34)
    (root / "test" / "red" / "0.png").unlink()
    found = [in_processes(world, evaluated, root, 101)[0] for world in (1, 2, 3)[: 3 if side == 16 else 2]]
    assert {counts[1] for counts in found} == {101}
    assert len({counts[0] for counts in found}) == 1
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-6)


@pytest.mark.slow
def test_files_of_two_processes_with_a_worker_each_are_trained_on_as_those_of_one(image_folder, tmp_path):
    root = image_folder(side=80, train=35, test=2)
    changes = {"data.image_size": (32, 32), "batch_size": 16, "norm_batch": 8, "model.width": 0.125, "epochs": 1}
    augment = {"augment.policy": "trivial", "augment.erase": 0.3, "data.holdout": 0.0, "mixing.cutmix": 1.0}
    one = tiny(root, **(changes | augment))
    for world in (1, 2):
        found = in_processes(world, worked, one, tmp_path / f"{world}")
        assert all(isinstance(history, tuple) for history in found), found
    first, second = (state_of(tmp_path / f"{world}") for world in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def worked(one, out):
    return fit(one, out=out, execution=Execution(workers=1), callbacks=[]).history


def test_batches_that_do_not_divide_into_chunks_are_refused():
    with pytest.raises(ConfigError, match="norm_batch is 24.*64.*--norm-batch"):
        tiny(batch_size=64, norm_batch=24)


@pytest.mark.slow(minutes=2)
def test_processes_that_are_killed_again_and_again_end_with_the_very_same_state(tmp_path):
    """Under torchrun, which starts all of them again; the undisturbed run is that of one process."""
    from benchmarks.kills import disturbed, same

    fields = {"batch_size": 64, "norm_batch": 32, "model.width": 0.25, "precision": "fp32", "epochs": 12}
    fit(Recipe.default().replace(fields), out=tmp_path / "alone", callbacks=[])
    kills = disturbed(tmp_path / "killed", 12, 2, 2, random.Random(0), 1.0)
    assert kills >= 1  # a fast machine is done before the last one
    assert same(tmp_path / "alone", tmp_path / "killed")
