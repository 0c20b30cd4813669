"""Whole runs: they repeat themselves to the bit, resume exactly, and lose nothing when something fails."""

import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import StopAfter, console, said, same, tiny

import residuum
from residuum.data.catalog import scan
from residuum.data.preparing import normalise
from residuum.data.sources import open_dataset
from residuum.errors import ConfigError, DataError, DeviceError, DivergedError, RunError
from residuum.train import Callback, Execution, Recipe, fit, loop, resume, session
from residuum.train.run import Run
from residuum.train.session import full_batches


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def copied(run, to):
    return shutil.copytree(run.path, to)


# -- what a run leaves and says ----------------------------------------------------------------------------------------


def test_a_run_notes_every_epoch_and_looks_at_the_test_split_once(finished):
    noted = rows(finished.path)
    assert [row["epoch"] for row in noted] == [1, 2]
    assert ["test_accuracy" in row for row in noted] == [False, True]
    assert all({"train_loss", "val_loss", "val_accuracy"} <= row.keys() for row in noted)
    assert noted[-1] == finished.result.metrics


def test_the_weights_load_with_classes_and_preprocessing(finished):
    network = residuum.load(finished.path / "weights.safetensors")
    assert network.config == finished.recipe.model
    assert network.classes == tuple("0123456789")
    assert network.preprocessing.image_size == (8, 8)


def test_the_console_says_what_is_trained_before_the_first_epoch(finished):
    words = [line.split()[0] for line in finished.out.splitlines()]
    assert words[0] == "reading"
    assert words.index("epoch") > max(words.index(w) for w in ("data", "network", "computing", "batches", "run"))
    assert [line for line in finished.out.splitlines() if line.startswith("epoch 2/2  train loss")]


def test_classes_that_are_evened_out_are_said(tmp_path):
    text = io.StringIO()
    fit(tiny(epochs=1, **{"data.balance": "loss"}), out=tmp_path / "run", callbacks=[console(text)])
    assert re.search(
        r"^balance +1\d\d to 1\d\d train images a class, evened out by the loss with a power of 1$",
        text.getvalue(), re.MULTILINE,
    )  # fmt: skip


def test_the_test_split_can_be_left_alone(tmp_path):
    result = fit(tiny(epochs=1), out=tmp_path / "run", execution=Execution(test=False), callbacks=[])
    assert "val_accuracy" in result.metrics
    assert "test_accuracy" not in result.metrics


def test_without_a_validation_split_train_stands_alone(tmp_path):
    result = fit(tiny(epochs=1, **{"data.holdout": 0.0}), out=tmp_path / "run", callbacks=[])
    assert not [key for key in result.metrics if key.startswith("val")]
    assert "test_accuracy" in result.metrics
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    ("holdout", "why"),
    [(0.1, ", since each class keeps one to train with"), (0.0, "")],
    ids=["one image a class", "none wanted"],
)
def test_where_no_image_is_held_out_for_validation_a_line_says_what_there_will_not_be(
    tmp_path, image_folder, holdout, why
):
    root = image_folder(side=8, train=1, test=1)
    text = io.StringIO()
    recipe = tiny(root, epochs=1, batch_size=3, **{"data.holdout": holdout})
    result = fit(recipe, out=tmp_path / "run", execution=Execution(workers=0), callbacks=[console(text)])
    assert f"validation no image is held out{why}: no val accuracy, and no best.safetensors" in said(text)
    assert "val_accuracy" not in result.metrics
    assert not result.path.joinpath("best.safetensors").exists()


def test_nothing_is_said_where_there_are_no_callbacks(tmp_path, capsys):
    fit(tiny(epochs=1), out=tmp_path / "run", callbacks=[])
    assert capsys.readouterr().out == ""


def test_without_callbacks_the_console_is_told_and_the_folder_is_numbered(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fit(tiny(epochs=1))
    assert result.path.name == "digits-1"
    assert "epoch 1/1" in capsys.readouterr().out


def test_the_precision_that_was_chosen_is_in_the_runs_recipe(tmp_path):
    fit(tiny(epochs=1, precision="auto"), out=tmp_path / "run", callbacks=[])
    assert Run(tmp_path / "run").read()[0].precision in ("fp32", "bf16")


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_drawn(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(tiny(epochs=1), out=tmp_path / "run", callbacks=[])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("images", "batch_size", "left_out", "says"),
    [(240, 64, 48, "48 of 240 train images (20%).*--batch-size 60 leaves out 0"), (101, 10, 1, "1 of 101.*(1%)")],
)
def test_images_that_full_batches_leave_out_are_said_with_the_remedy(images, batch_size, left_out, says):
    assert re.search(says.replace("(", r"\(").replace(")", r"\)"), full_batches(images, batch_size, left_out))


# -- the same again ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_file_and_another_seed_another(finished, tmp_path):
    fit(finished.recipe, out=tmp_path / "again", callbacks=[])
    fit(finished.recipe.replace(seed=1), out=tmp_path / "other", callbacks=[])
    first, again = (path / "weights.safetensors" for path in (finished.path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()
    assert not same(finished.path, tmp_path / "other")


def test_a_run_that_was_stopped_goes_on_to_the_very_weights(finished, stopped, tmp_path):
    assert stopped.result.stopped_by == signal.SIGTERM
    assert not same(finished.path, stopped.path)
    result = resume(copied(stopped, tmp_path / "run"), callbacks=[])
    assert result.stopped_by is None
    assert same(finished.path, tmp_path / "run")
    for one, two in zip(rows(finished.path), rows(tmp_path / "run"), strict=True):
        assert untimed(one) == untimed(two)


def untimed(row):
    return {name: value for name, value in row.items() if not name.startswith(("seconds", "images_per_second"))}


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 5, 6])  # five steps an epoch: within, at the end, in the next
def test_wherever_it_is_stopped(tmp_path, each_step, after):
    recipe = tiny(precision="bf16", **{"average.window": 0.3})
    fit(recipe, out=tmp_path / "whole", callbacks=[])
    result = fit(recipe, out=tmp_path / "cut", callbacks=[StopAfter(after, signal.SIGINT)])
    assert result.stopped_by == signal.SIGINT
    resume(tmp_path / "cut", callbacks=[])
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_from_another_folder_with_other_workers_and_memory(image_folder, tmp_path, each_step, monkeypatch):
    root = image_folder(side=80)
    monkeypatch.chdir(root.parent)
    changes = {"data.image_size": (32, 32), "batch_size": 8, "model.width": 0.125, "model.stochastic_depth": 0.0}
    recipe = tiny(root.name, **changes)
    fit(recipe, out=tmp_path / "whole", execution=Execution(workers=2), callbacks=[])
    fit(recipe, out=tmp_path / "cut", execution=Execution(workers=2), callbacks=[StopAfter(2)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = io.StringIO()
    resume(tmp_path / "cut", execution=Execution(workers=0, memory="100GB"), callbacks=[console(text)])
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert "of 100.00 GB for a step" in " ".join(text.getvalue().split())
    assert Run(tmp_path / "cut").read()[1] == Execution(workers=0, memory="100GB")


def test_outside_the_main_thread_a_run_trains_too(tmp_path):
    thread = threading.Thread(target=lambda: fit(tiny(epochs=1), out=tmp_path / "run", callbacks=[]))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "curves.png").exists()


def test_where_a_signal_does_not_exist_the_others_are_listened_to(tmp_path, each_step, monkeypatch):
    """Windows lacks some."""
    monkeypatch.delattr(signal, "SIGTERM")
    result = fit(tiny(), out=tmp_path / "run", callbacks=[StopAfter(2, signal.SIGINT)])
    assert result.stopped_by == signal.SIGINT


def test_signal_handlers_are_put_back(tmp_path, each_step):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(tiny(), out=tmp_path / "run", callbacks=[StopAfter(3)])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_it_goes_on_from_the_state_before_where_the_last_is_damaged(finished, stopped, tmp_path):
    path = copied(stopped, tmp_path / "run")
    (path / "state.pt").write_bytes(b"")
    text = io.StringIO()
    resume(path, callbacks=[console(text)])
    assert [line for line in said(text) if line.startswith("state") and "going on from state-previous.pt" in line]
    assert same(finished.path, path)


# -- what a run does not go on with ------------------------------------------------------------------------------------


def test_a_finished_run_that_is_resumed_says_that_it_is_complete_and_stays_as_it_is(finished):
    before = {path.name: path.read_bytes() for path in finished.path.iterdir()}
    text = io.StringIO()
    result = resume(finished.path, callbacks=[console(text)])
    assert "complete   after 2 epochs; go on by more --epochs" in text.getvalue()
    assert result.history == finished.result.history
    assert {path.name: path.read_bytes() for path in finished.path.iterdir()} == before


def test_a_test_split_that_was_left_alone_can_still_be_looked_at(tmp_path):
    fit(tiny(epochs=1), out=tmp_path / "run", execution=Execution(test=False), callbacks=[])
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    result = resume(tmp_path / "run", execution=Execution(), callbacks=[])
    assert "test_accuracy" in result.metrics
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer.lr": 0.3}, r"optimizer\.lr is 0\.1 there and 0\.3 here"),
        ({"precision": "bf16"}, "precision is 'fp32' there and 'bf16' here"),
        ({"epochs": 1, "seed": 4}, "epochs is 2 there and 1 here, seed is 0 there and 4 here"),
        ({"model.width": 0.5}, r"model\.width is 0\.25 there"),
    ],
)
def test_a_change_of_the_recipe_is_refused_in_one_sentence_that_names_it(stopped, changes, says):
    with pytest.raises(RunError, match=says):
        resume(stopped.path, recipe=stopped.recipe.replace(changes), callbacks=[])


def stopped_on(root, out):
    """A run on small images in memory that was stopped after two steps."""
    return fit(tiny(root, batch_size=4, epochs=3), out=out, callbacks=[StopAfter(2)])


def rename_a_class(root):
    for split in ("train", "test"):
        (root / split / "blue").rename(root / split / "zz_blue")


def add_a_file(root):
    shutil.copy(root / "train" / "red" / "0.png", root / "train" / "red" / "new.png")


def remove_a_file(root):
    (root / "train" / "red" / "0.png").unlink()


def rename_a_file(root):
    (root / "train" / "red" / "0.png").rename(root / "train" / "red" / "zero.png")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename_a_class, "classes are now without 'blue' and with 'zz_blue'"),
        (add_a_file, "class 'red' had"),
        (remove_a_file, "class 'red' had"),
        (rename_a_file, "other names or sizes than before"),
    ],
)
def test_data_that_changed_since_is_refused_with_what_changed(tmp_path, image_folder, each_step, change, says):
    root = image_folder(side=16)
    stopped_on(root, tmp_path / "run")
    change(root)
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(RunError, match=says):
        resume(tmp_path / "run", callbacks=[])
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_data_that_has_moved_is_named_again_and_accepted(tmp_path, image_folder, each_step):
    root = image_folder(side=16)
    stopped_on(root, tmp_path / "run")
    moved = root.rename(tmp_path / "moved")
    saved = Run(tmp_path / "run").read()[0]
    with pytest.raises(DataError, match="colours"):
        resume(tmp_path / "run", callbacks=[])
    result = resume(tmp_path / "run", recipe=saved.replace({"data.path": str(moved)}), callbacks=[])
    assert result.metrics["epoch"] == 3
    assert Run(tmp_path / "run").read()[0].data.path == str(moved)


def test_a_precision_that_this_machine_would_not_choose_is_said(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "choose_precision", lambda asked, device: ("bf16" if asked == "auto" else asked, "x"))
    text = io.StringIO()
    resume(copied(stopped, tmp_path / "run"), callbacks=[console(text)])
    assert "fp32 (as before, though bf16 would be chosen here: x)" in text.getvalue()


def test_a_precision_that_this_machine_does_not_have_is_refused(stopped, monkeypatch):
    def choose(asked, device):
        raise DeviceError("no")

    monkeypatch.setattr(session, "choose_precision", choose)
    with pytest.raises(DeviceError):
        resume(stopped.path, callbacks=[])


# -- what fails --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_keeps_the_last_good_state(tmp_path, monkeypatch):
    from residuum.train.step import Counted, train_step

    count = 0

    def step(net, optimizer, *batch, **how):
        nonlocal count
        count += 1
        loss, correct = train_step(net, optimizer, *batch, **how)
        if count == 8:
            torch.nn.init.constant_(net.fc.weight, float("nan"))
        return Counted(loss * float("nan") if count == 8 else loss, correct)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(DivergedError, match="epoch 2, step 3 of 5"):
        fit(tiny(), out=tmp_path / "run", callbacks=[])
    values, _ = Run(tmp_path / "run").load_state()
    assert (values["progress"]["epoch"], values["progress"]["step"]) == (1, 0)
    assert all(t.isfinite().all() for t in values["network"].values())
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / "weights.safetensors").values())


def test_weights_that_a_last_step_made_no_numbers_keep_the_last_good_state(tmp_path, monkeypatch):
    from residuum.train.step import train_step

    count = 0

    def step(net, *rest, **how):
        nonlocal count
        count += 1
        counted = train_step(net, *rest, **how)
        if count == 10:
            torch.nn.init.constant_(net.fc.weight, float("inf"))
        return counted

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(DivergedError, match=r"'fc.weight' after epoch 2, step 0; the run keeps its last good state"):
        fit(tiny(), out=tmp_path / "run", callbacks=[])
    values, _ = Run(tmp_path / "run").load_state()
    assert (values["progress"]["epoch"], values["progress"]["step"]) == (1, 0)
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / "weights.safetensors").values())


PHOTOS = {"data.image_size": (32, 32), "batch_size": 8, "model.width": 0.125, "model.stochastic_depth": 0.0}


def test_a_bad_image_in_the_first_batch_leaves_no_folder(tmp_path, image_folder):
    root = image_folder(side=80)
    for path in (root / "train" / "red").iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="red"):
        fit(tiny(root, **PHOTOS), out=tmp_path / "run", execution=Execution(workers=0), callbacks=[])
    assert not (tmp_path / "run").exists()


def test_a_bad_image_in_val_does_not_cost_the_epoch_and_can_be_left_out_on_resuming(tmp_path, image_folder):
    root = image_folder(side=80, test_name="val")
    bad = root / "val" / "red" / "0.png"
    bad.write_bytes(bad.read_bytes()[:2000])  # its header says that it is an image
    recipe = tiny(root, **PHOTOS, epochs=1)
    with pytest.raises(DataError, match="red/0.png"):
        fit(recipe, out=tmp_path / "run", execution=Execution(workers=0), callbacks=[])
    values, _ = Run(tmp_path / "run").load_state()
    assert (values["progress"]["epoch"], values["progress"]["step"]) == (0, 3)
    saved = Run(tmp_path / "run").read()[0]
    text = io.StringIO()
    result = resume(tmp_path / "run", recipe=saved.replace({"data.skip_bad_images": True}), callbacks=[console(text)])
    assert result.metrics["epoch"] == 1
    assert [line for line in said(text) if line.startswith("left out") and "red/0.png" in line]


@pytest.mark.parametrize("good", [1, 2])
def test_a_batch_of_which_skipping_leaves_little_trains_or_ends_in_a_sentence(tmp_path, image_folder, good):
    root = image_folder(side=80, train=2, test=2)
    for path in sorted((root / "train").glob("*/*.png"))[good:]:
        path.write_bytes(path.read_bytes()[:2000])
    changes = PHOTOS | {"data.skip_bad_images": True, "data.holdout": 0.0, "epochs": 1}
    recipe = Recipe.default(str(root), "resnet18").replace(changes)
    try:
        result = fit(recipe, out=tmp_path / "run", execution=Execution(workers=0), callbacks=[])
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert result.metrics["epoch"] == 1


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"does not fit 1\.00 MB.*--batch-size"):
        fit(tiny(), out=tmp_path / "run", execution=Execution(memory="1MB"), callbacks=[])
    assert not (tmp_path / "run").exists()


FULL_DISK = """
import resource, sys, signal
from residuum.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["residuum", "train", "--epochs", "1", "--model.width", "0.5", "--out", {out!r}]
main()
"""


def test_weights_that_cannot_be_written_at_the_start_leave_nothing(tmp_path, monkeypatch):
    def full(*args, **more):
        raise residuum.WeightsError("cannot write it")

    monkeypatch.setattr(session, "write_ours", full)
    with pytest.raises(residuum.WeightsError):
        fit(tiny(), out=tmp_path / "run", callbacks=[])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_so_and_leaves_nothing(tmp_path):
    """A limit on file sizes stands for the full disk: writing fails part of the way."""
    code = FULL_DISK.format(limit=20_000, out=str(tmp_path / "run"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_later_keeps_the_last_saved_state(finished, tmp_path, monkeypatch):
    plain, count = torch.save, 0

    def save(state, path):
        nonlocal count
        count += 1
        if count == 3:  # before the first step, after the first epoch, after the second
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        plain(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RunError, match=r"cannot write .*state\.pt: No space left"):
        fit(finished.recipe, out=tmp_path / "run", callbacks=[])
    monkeypatch.undo()
    assert Run(tmp_path / "run").load_state()[0]["progress"]["epoch"] == 1
    resume(tmp_path / "run", callbacks=[])
    assert same(finished.path, tmp_path / "run")


@pytest.mark.slow
def test_averaged_weights_are_about_as_good_as_the_last_after_three_epochs(tmp_path):
    recipe = Recipe.default("digits").replace({"epochs": 3, "average.window": 0.1})
    averaged = fit(recipe, out=tmp_path / "run", callbacks=[]).metrics["test_accuracy"]
    network = residuum.load(tmp_path / "run").eval()
    network.load_state_dict(Run(tmp_path / "run").load_state()[0]["network"])
    dataset = open_dataset(scan("digits"), recipe.data, channels=1, cache=tmp_path)
    images = normalise(dataset.test.images.permute(0, 3, 1, 2), dataset.preprocessing)
    with torch.inference_mode():
        last = (network(images).argmax(1) == dataset.test.labels).double().mean().item()
    assert averaged >= last - 0.01
    assert last > 0.15


def test_what_is_held_out_is_the_same_for_every_seed(finished):
    catalog = scan("digits")
    jobs = [
        session.prepare(finished.recipe.replace(seed=seed), Execution(), catalog, torch.device("cpu"), [])
        for seed in (0, 1)
    ]
    one, two = (job.dataset for job in jobs)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(one, name).images, getattr(two, name).images)
    assert jobs[0].train.schedule.batches(0)[0].tolist() != jobs[1].train.schedule.batches(0)[0].tolist()


# -- what a recipe may say ---------------------------------------------------------------------------------------------

WAYS = {
    "lamb": {
        "optimizer": {"name": "lamb", "lr": 0.01}, "loss": {"name": "bce", "threshold": 0.2},
        "mixing": {"mixup": 0.2, "cutmix": 1.0}, "schedule": {"name": "linear", "min_lr": 1e-6},
    },
    "muon": {
        "optimizer": {"name": "muon", "lr": 0.01, "others_lr": 5.0, "layer_decay": 0.9, "clip": 1.0},
        "schedule": {"name": "triangle", "warmup": 0.3, "warmup_start": 0.2}, "mixing": {"mixup": 0.2},
        "average": {"window": 0.2},
    },
    "adamw": {
        "optimizer": {"name": "adamw", "lr": 0.01, "decay": "all", "bias_lr": 2.0, "head_lr": 3.0},
        "schedule": {"name": "step", "milestones": (1, 0.75)},
    },
    "augmented": {
        "augment": {"pad": 2, "border": "reflect", "flip": "alternate", "cutout": 3, "sizes": "6:0.5,8", "repeats": 2},
        "data.balance": "sampler", "data.balance_power": 0.5, "average": {"window": 0.3, "buffers": "copy"},
    },
    "weighted": {
        "data.balance": "loss", "data.image_size": (12, 10), "mixing": {"cutmix": 1.0},
        "augment": {"pad": 1, "crop_scale": (0.4, 1.0)}, "optimizer": {"norm_momentum": 0.3},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_with_any_optimizer_loss_and_mixing_goes_on_bit_equal(way, tmp_path, each_step):
    recipe = tiny(**WAYS[way])
    whole = fit(recipe, out=tmp_path / "whole", callbacks=[])
    halted = fit(recipe, out=tmp_path / "halted", callbacks=[StopAfter(7)])
    assert halted.stopped_by is not None
    resume(halted.path, callbacks=[])
    assert same(whole.path, halted.path)
    assert all(math.isfinite(value) for name, value in whole.metrics.items() if name != "data_digest")


# -- more epochs, the best one, and what may be started again ----------------------------------------------------------


def test_a_run_goes_on_with_more_epochs_and_says_what_that_means(finished, tmp_path):
    path, text = copied(finished, tmp_path / "run"), io.StringIO()
    longer = finished.recipe.replace(epochs=3)
    result = resume(path, recipe=longer, callbacks=[console(text)])
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert "test_accuracy" in result.metrics
    assert "2 before, 3 now; schedules go on as those of 3 epochs would" in text.getvalue()
    assert Run(path).read()[0].epochs == 3
    assert [entry.get("epochs") for entry in json.loads((path / "environment.json").read_text())] == [None, 3]


@pytest.mark.slow
def test_where_schedules_do_not_know_the_length_of_the_run_more_epochs_are_as_if_there_had_always_been_more(tmp_path):
    recipe = tiny(epochs=1, **{"schedule.name": "constant", "schedule.warmup": 0.0})
    fit(recipe, out=tmp_path / "short", callbacks=[])
    text = io.StringIO()
    resume(tmp_path / "short", recipe=recipe.replace(epochs=2), callbacks=[console(text)])
    fit(recipe.replace(epochs=2), out=tmp_path / "long", callbacks=[])
    assert same(tmp_path / "short", tmp_path / "long")
    assert "1 before, 2 now; what was done is as it would have been" in text.getvalue()


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_on_val_are_kept_over_a_stop(tmp_path, each_step):
    recipe = tiny(epochs=4, **{"schedule.name": "constant", "schedule.warmup": 0.0, "optimizer.lr": 1.0})
    whole = fit(recipe, out=tmp_path / "whole", callbacks=[])
    fit(recipe, out=tmp_path / "cut", callbacks=[StopAfter(12)])
    resume(tmp_path / "cut", callbacks=[])
    assert (tmp_path / "cut" / "best.safetensors").read_bytes() == (
        tmp_path / "whole" / "best.safetensors"
    ).read_bytes()
    accuracies = [row["val_accuracy"] for row in whole.history]
    best = accuracies.index(max(accuracies)) + 1
    fit(recipe, out=tmp_path / "until", callbacks=[StopAfter(5 * best)])
    a, b = (load_file(tmp_path / run) for run in ("whole/best.safetensors", "until/weights.safetensors"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("holdout", [None, 0.0])
def test_a_network_that_answers_no_better_than_one_answer_for_all_is_said_to(tmp_path, holdout):
    text, recipe = io.StringIO(), tiny(**{"optimizer.lr": 1e-9, "epochs": 1, "seed": 1})
    if holdout is not None:
        recipe = recipe.replace({"data.holdout": holdout})
    row = fit(recipe, out=tmp_path / "run", callbacks=[console(text)]).metrics
    split = "val" if holdout is None else "test"
    (line,) = [line for line in said(text) if line.startswith("no better")]
    found = re.search(rf"than always answering '(\d)', which is right for ([\d.]+) % of the {split} images$", line)
    assert float(found[2]) >= 100 * row[f"{split}_accuracy"] - 0.005
    assert float(found[2]) >= 10


def test_a_network_that_learned_something_is_not_said_to_be_no_better(finished):
    assert "no better" not in finished.out


def test_without_a_validation_split_there_is_no_best_epoch(tmp_path):
    fit(tiny(epochs=1, **{"data.holdout": 0.0}), out=tmp_path / "run", callbacks=[])
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_the_same_call_begins_a_run_goes_on_with_it_and_leaves_it_when_it_is_complete(finished, tmp_path, each_step):
    recipe, out = finished.recipe, tmp_path / "run"
    assert session.begin_or_resume(recipe, out=out, callbacks=[StopAfter(7)]).stopped_by == signal.SIGTERM
    for _ in range(2):
        assert session.begin_or_resume(recipe, out=out, callbacks=[]).metrics["epoch"] == 2
    assert same(finished.path, out)


def test_what_a_run_left_that_was_killed_before_its_folder_was_there_goes(finished, tmp_path):
    left = copied(finished, tmp_path / ".run.0123abcd.partial")
    (left / "state.pt").unlink()
    path = tmp_path / "run"
    path.mkdir()
    assert session.begin_or_resume(finished.recipe, out=path, callbacks=[]).metrics["epoch"] == 2
    assert same(finished.path, path)
    assert [*tmp_path.iterdir()] == [path]


def test_a_run_can_go_on_from_the_moment_that_its_folder_is_there(finished, tmp_path):
    class Killed(Callback):
        def begin(self, beginning):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(finished.recipe, out=tmp_path / "run", callbacks=[Killed()])
    assert session.begin_or_resume(finished.recipe, out=tmp_path / "run", callbacks=[]).metrics["epoch"] == 2
    assert same(finished.path, tmp_path / "run")


@pytest.mark.parametrize("name", ["thesis.txt", "recipe.toml", "data.json", "data/images.tar", "weights.safetensors"])
def test_a_folder_without_a_state_is_not_touched(finished, tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("work")
    with pytest.raises(RunError, match=r"'[^']*run' is not a run that can be resumed: it has no state\.pt"):
        session.begin_or_resume(finished.recipe, out=tmp_path / "run", callbacks=[])
    assert file.read_text() == "work"


def test_a_run_without_a_place_of_its_own_takes_the_next_where_another_began_meanwhile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare, inner = session.prepare, []

    def slowly(*args, **more):
        job = prepare(*args, **more)
        if not inner:
            inner.append(None)
            inner.append(fit(tiny(epochs=1), callbacks=[]).path)
        return job

    monkeypatch.setattr(session, "prepare", slowly)
    assert fit(tiny(epochs=1), callbacks=[]).path.name == "digits-2"
    assert inner[1].name == "digits-1"


@pytest.mark.parametrize("changes", [{"finetune.freeze": 2}, {"finetune.head": "new"}])
def test_a_run_that_began_from_weights_refuses_other_settings_of_that(finished, tmp_path, changes):
    recipe = Recipe.default("digits", weights=finished.path).replace({"epochs": 1, "batch_size": 256})
    begun = fit(recipe, out=tmp_path / "run", callbacks=[])
    with pytest.raises(RunError, match=f"its own recipe: {next(iter(changes))} is "):
        session.resume(begun.path, recipe=recipe.replace({"epochs": 2} | changes), callbacks=[])
    assert session.begin_or_resume(recipe, out=begun.path, callbacks=[]).metrics["epoch"] == 1


@pytest.mark.slow
def test_the_digest_of_the_data_is_a_function_of_seed_and_epoch_alone(finished, tmp_path):
    fit(tiny(epochs=2, norm_batch=64, **{"optimizer.lr": 0.2}), out=tmp_path / "other", callbacks=[])
    fit(tiny(epochs=2, seed=1), out=tmp_path / "seed", callbacks=[])
    paths = (finished.path, tmp_path / "other", tmp_path / "seed")
    one, two, three = ([row["data_digest"] for row in rows(path)] for path in paths)
    assert one == two
    assert len({*one, *three}) == 4


@pytest.mark.parametrize(
    ("preset", "size", "halves"),
    [("resnet26d", (8, 8), True), ("resnet26d", (8, 64), False), ("resnet26d", (17, 17), False),
     ("digits_resnet", (2, 2), False), ("digits_resnet", (1, 1), True)],
)  # fmt: skip
def test_maps_of_one_pixel_that_are_halved_are_trained_in_fp32_on_a_cpu(monkeypatch, preset, size, halves):
    monkeypatch.setattr(session, "choose_precision", lambda asked, device: ("bf16", "as said"))
    one = Recipe.default("digits", model=preset).replace({"model.width": 0.125, "data.image_size": size})
    for device, expected in ((torch.device("cpu"), "fp32" if halves else "bf16"), (torch.device("cuda"), "bf16")):
        assert session.precision_for(one, scan("digits"), device)[0] == expected
    if halves:
        with pytest.raises(ConfigError, match="precision is bf16, but a stage .* take fp32, or larger images"):
            session.precision_for(one.replace(precision="bf16"), scan("digits"), torch.device("cpu"))
