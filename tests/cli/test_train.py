"""`residuum train`: what goes over what, what it refuses, what it prints."""

import re
import sys

import pytest
from tests.train.runs import tiny

import residuum
from residuum import ConfigError, preset
from residuum.cli import train
from residuum.cli.line import build, read
from residuum.train.recipe import NAMES, OptimizerSettings, Recipe, ScheduleSettings
from residuum.train.recipes import RECIPES

QUICK = ("--epochs", 1, "--model.width", 0.25, "--batch-size", 256, "--precision", "fp32")


def recipe(*args):
    line = read(train.Train, [str(arg) for arg in args], "residuum train")
    return build(train.Train, train.defaults(line), line, "residuum train").recipe


def test_the_line_goes_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('epochs = 7\n[optimizer]\nlr = 0.01\n[model]\npreset = "cifar_resnet20"\nwidth = 0.5\n')
    found = recipe("--recipe", path, "--lr", 0.02, "--model.dropout", 0.1)
    assert (found.epochs, found.optimizer.lr, found.batch_size) == (7, 0.02, Recipe.default("digits").batch_size)
    assert found.model == preset("cifar_resnet20").replace(width=0.5, dropout=0.1, in_channels=1)


def test_a_preset_on_the_line_goes_over_the_files(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\npreset = "cifar_resnet20"\n')
    assert recipe("--recipe", path, "--model", "cifar_resnet32").model.depths == (5, 5, 5)


def test_a_recipe_files_data_decides_the_defaults(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[data]\npath = "cifar10"\n')
    assert recipe("--recipe", path) == Recipe.default("cifar10")


@pytest.mark.parametrize("where", ["line", "file"])
def test_another_optimizer_begins_with_its_own_defaults(tmp_path, image_folder, where):
    path, data = tmp_path / "r.toml", image_folder(side=16)
    path.write_text("epochs = 2\n" if where == "line" else "epochs = 2\n[optimizer]\nname = 'sgd'\n")
    found = recipe("--data", data, "--recipe", path, *(("--optimizer.name", "sgd") if where == "line" else ()))
    assert found.optimizer == Recipe().optimizer
    assert (found.schedule.name, found.epochs) == ("triangle", 2)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if not recipe.from_weights])
def test_another_optimizer_or_schedule_than_a_named_recipes_has_nothing_of_its_table(image_folder, name):
    named = ("--data", image_folder(side=16), "--recipe", name)
    usual = recipe(*named)
    other = "sgd" if usual.optimizer.name != "sgd" else "adamw"
    lr = 0.1 if other == "sgd" else 0.001
    found = recipe(*named, "--optimizer.name", other)
    assert found == usual.replace(optimizer=OptimizerSettings(name=other, lr=lr))
    found = recipe(*named, "--optimizer.name", other, "--lr", 0.02, "--optimizer.bias-lr", 2)
    assert found == usual.replace(optimizer=OptimizerSettings(name=other, lr=0.02, bias_lr=2.0))
    found = recipe(*named, "--schedule.name", "constant", "--schedule.warmup", 0)
    assert found == usual.replace(schedule=ScheduleSettings(name="constant", warmup=0.0))


def test_a_line_goes_over_a_file_and_the_file_over_the_recipe_that_it_names(tmp_path, image_folder):
    path = tmp_path / "r.toml"
    path.write_text('recipe = "rsb-a3"\nepochs = 7\n[optimizer]\nname = "sgd"\nweight_decay = 0.001\n')
    named = ("--data", image_folder(side=16), "--recipe", path)
    assert recipe(*named).optimizer == OptimizerSettings(weight_decay=0.001)
    found = recipe(*named, "--optimizer.name", "adamw")
    assert found.optimizer == OptimizerSettings(name="adamw", lr=0.001)
    assert (found.epochs, found.loss.name) == (7, "bce")


def test_a_file_over_a_recipe_that_starts_from_weights_needs_them_too(tmp_path, image_folder):
    path, data = tmp_path / "r.toml", image_folder(side=16)
    path.write_text('recipe = "bit"\nepochs = 7\n')
    with pytest.raises(ConfigError, match="the recipe bit starts from weights; name them by --weights"):
        recipe("--data", data, "--recipe", path)
    residuum.save(residuum.ResNet(preset("cifar_resnet20")), tmp_path / "w.safetensors")
    found = recipe("--data", data, "--recipe", path, "--weights", tmp_path / "w.safetensors")
    assert (found.epochs, found.model.depths, found.finetune.head) == (7, (3, 3, 3), "zero")


def test_a_run_by_a_recipe_for_few_images_goes_on_by_its_own_line(command, image_folder, tmp_path):
    line = ["train", "--data", image_folder(side=16), "--recipe", "small-images", "--model.width", 0.0625]
    line += ["--epochs", 2, "--out", tmp_path / "run", "--resume", "auto"]
    assert command(*line).code == 0
    again = command(*line)
    assert again.code == 0
    assert "complete" in again.out


@pytest.mark.parametrize(
    ("file", "line"),
    [("[loss]\nthreshold = 0.2", "--loss.name bce"), ("[finetune]\nthaw = 0.5", "--weights w.safetensors --freeze 2"),
     ("[schedule]\nwarmup = 40.0", "--epochs 90"), ("[data]\nbalance_power = 0.5", "--balance loss"),
     ("norm_batch = 48", "--batch-size 48"), ("[optimizer]\neps = 0.1", "--optimizer.name lamb")],
)  # fmt: skip
def test_a_file_is_checked_together_with_the_line(tmp_path, monkeypatch, file, line):
    monkeypatch.chdir(tmp_path)
    residuum.save(residuum.ResNet(preset("digits_resnet")), tmp_path / "w.safetensors")
    (tmp_path / "r.toml").write_text(file)
    found = recipe("--recipe", "r.toml", *line.split()).to_dict()
    name, value = re.sub(r"\[(.*)]\n", r"\1.", file).split(" = ")
    assert found[name] == float(value)


def test_a_rate_for_what_muon_leaves_is_the_same_by_the_line_and_by_a_file(tmp_path):
    (tmp_path / "r.toml").write_text('[optimizer]\nname = "muon"\nlr = 0.02\n')
    by_file = recipe("--recipe", tmp_path / "r.toml")
    assert by_file == recipe("--optimizer.name", "muon", "--lr", 0.02)
    assert by_file.optimizer.others_lr == 10.0


def test_a_run_from_narrow_weights_of_a_preset_goes_on_by_its_own_line(command, tmp_path):
    residuum.save(residuum.ResNet(preset("cifar_resnet20").replace(width=0.25)), tmp_path / "w.safetensors")
    line = ["train", "--weights", tmp_path / "w.safetensors", "--model", "cifar_resnet20", "--epochs", 1]
    line += ["--batch-size", 256, "--precision", "fp32", "--out", tmp_path / "run", "--resume", "auto"]
    assert command(*line).code == 0
    assert command(*line).code == 0


def test_a_wrong_optimizer_is_refused_by_its_name(image_folder):
    with pytest.raises(ConfigError, match=r"^--optimizer\.name is 'sdg'.*did you mean 'sgd'"):
        recipe("--data", image_folder(side=16), "--optimizer.name", "sdg")


SHORT = {
    "--lr": ("optimizer.lr", 0.25), "--weight-decay": ("optimizer.weight_decay", 0.125),
    "--label-smoothing": ("loss.label_smoothing", 0.5), "--epochs": ("epochs", 3), "--batch-size": ("batch_size", 9),
    "--seed": ("seed", 4), "--precision": ("precision", "bf16"), "--data": ("data.path", "cifar10"),
    "--flip": ("augment.flip", "alternate"), "--balance": ("data.balance", "loss"),
}  # fmt: skip


@pytest.mark.parametrize("flag", SHORT)
def test_short_and_dotted_names_are_the_same(flag):
    name, value = SHORT[flag]
    long = f"--{name.replace('_', '-')}"
    found = recipe(flag, value)
    assert found == recipe(long, value) == recipe(f"{flag}={value}")
    assert found.to_dict()[name] == value


def test_the_image_size_is_a_height_and_a_width(image_folder):
    root = image_folder(side=80)
    found = recipe("--data", root, "--image-size", 64, 32)
    assert found.data.image_size == (64, 32)
    assert found == recipe("--data", root, "--data.image-size", 64, 32)


@pytest.mark.slow
def test_weights_bring_their_network_and_freeze_has_a_short_flag(finished):
    found = recipe("--weights", finished.path, "--freeze", 2, "--lr", 0.5)
    assert found.model == finished.recipe.model
    assert (found.finetune.weights, found.finetune.freeze) == (str(finished.path), 2)
    assert (found.optimizer.lr, found.optimizer.head_lr) == (0.5, 10.0)


def test_weights_in_a_file_do_as_those_on_the_line_do(finished, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(f'[finetune]\nweights = "{finished.path}"\nfreeze = 1\n[optimizer]\nlr = 0.5\n')
    assert recipe("--recipe", path) == recipe("--weights", finished.path, "--freeze", 1, "--lr", 0.5)


@pytest.mark.slow
def test_other_weights_than_a_files_may_have_another_digest(finished, stopped, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(f'[finetune]\nweights = "{stopped.path}"\nsha256 = "0"\n')
    assert recipe("--recipe", path).finetune.sha256 == "0"
    assert recipe("--recipe", path, "--weights", finished.path).finetune.sha256 is None


def test_a_named_recipe_that_goes_by_the_number_of_images_knows_it(finished):
    found = recipe("--recipe", "finetune", "--weights", finished.path)
    assert found == recipe("--weights", finished.path)
    assert (found.batch_size, found.epochs) == (56, 27)  # 1,294 images in 23 steps


def test_a_recipe_that_starts_from_weights_takes_their_network(finished):
    found = recipe("--recipe", "bit", "--weights", finished.path)
    assert found.model == finished.recipe.model
    assert (found.finetune.head, found.epochs, found.data.image_size) == ("zero", 250, (480, 480))


def test_few_images_are_counted_without_those_that_are_held_out(finished, image_folder):
    root = image_folder(side=16, train=30)
    for share, batch_size in ((0, 45), (0.5, 39)):  # of 90 images, and of 39
        assert recipe("--data", root, "--weights", finished.path, "--holdout", share).batch_size == batch_size


def test_help_names_every_field_and_answers_without_the_data(command):
    result = command("train", "--data", "nowhere", "--help")
    assert result.code == 0
    for name in NAMES:
        assert f"--{name.replace('_', '-')}" in result.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lr 0", "--optimizer.lr is '0'; it must be a number in (0, 1000]"),
        ("--average.window 2", "--average.window is '2'"),
        ("--optimizer.lrr 2", "--optimizer.lr"),
        ("--workers -1", "--workers is '-1'; it must be an integer of at least 0"),
        ("--memory lots", "'lots' is not a size of memory"),
        ("--model.num-classes 3", "model.num_classes is 3 but 'digits' has 10"),
        ("--model.in-channels 3", "model.in_channels is 3 but digits has 1"),
        ("--recipe none.toml", "'none.toml' cannot be read"),
        ("--resume nowhere", "'nowhere' is not a run that can be resumed"),
        ("--out here", "'here' exists already"),
        ("--memory 1MB", "does not fit 1.00 MB"),
        ("--weights none.pt", "none.pt"),
        ("--freeze 1", "finetune.freeze is 1, but there are no weights to start from; name them by --weights"),
        ("--recipe finetune", "the recipe finetune starts from weights; name them by --weights"),
        ("--recipe bit", "the recipe bit starts from weights; name them by --weights"),
        ("--flip", "--flip"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(refused, tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "mine").mkdir(parents=True)
    assert says in refused("train", *line.split())
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--model resnet18", "holds digits_resnet, and no resnet18; leave the model out, or take its weights"),
        ("--freeze 9", "finetune.freeze is 9; it must be at most 3"),
        ("--model.width 0.5", "does not fit the network: missing, unexpected or of another shape 'bn1.bias'"),
        ("--recipe he2015", "and no resnet50; leave the model out"),
    ],
)
def test_weights_that_do_not_fit_get_one_sentence_and_leave_nothing(
    refused, finished, tmp_path, monkeypatch, line, says
):
    monkeypatch.chdir(tmp_path)
    assert says in refused("train", "--weights", finished.path, *line.split())
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_dry_run_prints_what_would_be_and_writes_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("train", "--dry-run", *QUICK)
    assert result.code == 0
    assert not [*tmp_path.iterdir()]
    for topic, pattern in {
        "steps": r"\d+ an epoch, \d+ in all", "lr": r"0\.1 at step 1", "network": "depth 10, ",
        "time": r"\d+ s in all, [\d.]+ ms a step, of which \d+% wait",
        "memory": r"[\d.]+ MB for a step's tensors, with \d+ images at once$", "computing": "cpu, fp32",
    }.items():  # fmt: skip
        assert re.search(rf"^{topic} +.*{pattern}", result.out, re.MULTILINE), topic
    assert "chunks " not in result.out
    assert re.search(r"^ {11}[\u2581-\u2588]{5}$", result.out, re.MULTILINE)  # a block a step
    shown = result.out[result.out.index("epochs = ") : result.out.index("data       ")]
    assert Recipe.from_toml(shown) == recipe(*QUICK)


def test_a_dry_run_within_a_budget_says_what_is_recomputed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = " ".join(command("train", "--dry-run", *QUICK, "--memory", "100GiB").out.split())
    said = r"MB of 100 GiB \(107.37 GB\) for a step's tensors, with \d+ images at once; nothing is recomputed"
    assert re.search(said, shown)
    assert not [*tmp_path.iterdir()]


def test_a_curve_is_of_digits_where_there_are_no_blocks():
    class Plain:
        encoding = "ascii"

    assert train.sparkline([0.0, 0.5, 1.0, 0.1], Plain()) == "0470"
    assert train.sparkline([0.0], Plain()) == "0"


def test_a_service_that_there_is_not_is_refused(refused):
    assert "--log is 'comet'; it must be" in refused("train", "--log", "comet")


def test_a_run_that_was_stopped_goes_on_by_the_line_that_it_prints(command, stopped, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(stopped.path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    result = command("train", "--resume", "run", "--workers", 0, "--lr", tiny().optimizer.lr)
    assert result.code == 0
    assert re.search(r"resumed +after (step \d+ of \d+ in )?epoch \d+ of 2", result.out)
    assert re.search(r"val accuracy [\d.]+ %, test accuracy [\d.]+ % after 2 epochs", result.out)
    assert "residuum predict run IMAGE" in result.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lr 0.3 --epochs 1", "epochs is 2 there and 1 here, optimizer.lr is 0.1 there and 0.3 here"),
        ("--model cifar_resnet20", "model.depths"),
        ("--data cifar10", "is not what it was"),
        ("--out other", "leave out --out"),
        ("--precision bf16", "precision is 'fp32' there and 'bf16' here"),
    ],
)
def test_a_resumed_run_keeps_its_recipe(refused, stopped, line, says):
    assert says in refused("train", "--resume", stopped.path, *line.split())


def test_a_dry_run_of_a_run_that_goes_on_needs_no_weights(command, finished, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((finished.path / "weights.safetensors").read_bytes())
    line = ["train", "--weights", weights, "--out", tmp_path / "run", *QUICK[:2], *QUICK[4:]]
    assert command(*line).code == 0
    weights.unlink()
    assert command("train", "--resume", tmp_path / "run", "--epochs", 2, "--dry-run").code == 0
    assert command(*line, "--epochs", 2, "--resume", "auto", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [("[data]\nholdout = 'much'", "data.holdout is 'much'"), ("[data]\nholdout = [0.1]", "data.holdout is"),
     ("recipe = ['small-images']", "neither a named recipe nor a recipe file")],
)  # fmt: skip
def test_a_file_of_other_types_is_refused_in_a_sentence(refused, tmp_path, text, says):
    (tmp_path / "r.toml").write_text(text)
    assert says in refused("train", "--recipe", tmp_path / "r.toml")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems have no such names")
def test_a_folder_whose_name_is_no_text_leaves_no_run(refused, image_folder, tmp_path):
    root = image_folder(side=16)
    root = root.rename(root.with_name("d\udce9"))
    said = refused("train", "--data", root, "--out", tmp_path / "run", *QUICK[:2], "--model.width", 0.0625)
    assert "would hold a name that is no UTF-8" in said
    assert [*tmp_path.iterdir()] == [root]


def test_a_stop_is_told_with_the_line_that_goes_on(command, tmp_path, monkeypatch):
    from residuum.train import Result, session

    monkeypatch.setattr(session, "fit", lambda *args, **more: Result(tmp_path / "run", (), 1.0, 15))
    result = command("train", *QUICK)
    assert result.code == 128 + 15
    assert f"residuum train --resume {tmp_path / 'run'}" in result.out


def test_the_data_is_looked_through_once(image_folder, monkeypatch, command, tmp_path):
    from residuum.train import session

    root, count = image_folder(side=16), 0

    def scanning(plain):
        def scan(path):
            nonlocal count
            count += 1
            return plain(path)

        return scan

    for module in (train, session):
        monkeypatch.setattr(module, "scan", scanning(module.scan))
    monkeypatch.chdir(tmp_path)
    assert command("train", "--data", root, *QUICK).code == 0
    assert count == 1
