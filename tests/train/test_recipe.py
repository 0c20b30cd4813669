"""The recipe: checked, in and out of TOML, every field by its dotted name, file over default."""

import dataclasses

import pytest

import residuum
from residuum import ConfigError, ResNet, preset
from residuum.data.catalog import scan
from residuum.train.execution import Execution
from residuum.train.recipe import (
    NAMES,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    check_fit,
    differences,
    read_recipe,
)
from residuum.train.recipes import named_recipe

WRONG = {
    "epochs": [0, 1.5, "3"], "batch_size": [1, -2], "seed": [-1, 2**63], "precision": ["fp16"],
    "optimizer.lr": [0, -1, float("nan"), "fast"], "optimizer.momentum": [1, -0.1], "optimizer.weight_decay": [-1, 2],
    "optimizer.name": ["adam"], "optimizer.betas": [(0.9, 1.0), 0.9], "optimizer.decay": ["norms"],
    "optimizer.layer_decay": [0.0, 1.1], "optimizer.clip": [0.0], "schedule.name": ["steps"],
    "schedule.warmup": [-0.1, 30.0], "schedule.min_lr": [-1.0, 0.2], "schedule.milestones": [(0.0,), 0.5],
    "loss.name": ["mse"], "loss.label_smoothing": [1.0], "mixing.mixup": [-0.1, 1e-6], "mixing.off": [1.0],
    "average.window": [1.0, -0.5, "all"],
    "data.path": [3], "data.holdout": [1.0, -0.1], "data.skip_bad_images": [0],
    "augment.flip": [True, "no"], "augment.border": ["black"], "augment.cutout": [-1], "augment.sizes": ["big"],
    "data.balance": ["yes"], "data.balance_power": [0.5, 2.0], "data.mean": [(2.0,)], "data.std": [(0.0,)],
    "optimizer.norm_momentum": [0.0, 2.0], "average.buffers": ["none"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_wrong_value_is_refused_with_the_field_named(name, value):
    with pytest.raises(ConfigError, match=name.rpartition(".")[2]):
        Recipe().replace({name: value})


def test_settings_of_the_recipe_are_named_by_their_dotted_names():
    with pytest.raises(ConfigError, match=r"optimizer\.lr is -1\.0; it must be a number in \(0, 1000\]"):
        Recipe().replace({"optimizer.lr": -1})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lr", "did you mean 'optimizer.lr'"),
        ("optimiser.lr", "did you mean 'optimizer.lr'"),
        ("epoch", "did you mean 'epochs'"),
        ("model.widht", "did you mean 'model.width'"),
        ("device", "'device' is not a field of a recipe"),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_the_nearest(name, says):
    with pytest.raises(ConfigError, match=says):
        Recipe().replace({name: 1})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("optimizer", {"name": "lamb", "momentum": 0.8}, "optimizer.momentum is 0.8, which is for sgd and muon, but"),
        ("optimizer", {"betas": (0.9, 0.99)}, r"betas is \(0.9, 0.99\), which is for adamw and lamb.*name is sgd"),
        ("optimizer", {"name": "adamw", "others_lr": 2.0}, "which is for muon"),
        ("schedule", {"milestones": (0.3,)}, "which is for step, but schedule.name is cosine; leave it out, or at"),
        ("schedule", {"name": "constant", "min_lr": 0.01}, "which is for cosine and linear"),
        ("loss", {"threshold": 0.2}, "which is for bce, but loss.name is ce"),
    ],
)
def test_a_field_that_would_be_ignored_is_refused(name, value, says):
    with pytest.raises(ConfigError, match=says):
        Recipe().replace({name: value})


def test_a_warm_up_of_epochs_is_shorter_than_the_run():
    assert Recipe(epochs=6).replace({"schedule.warmup": 5}).schedule.warmup == 5
    with pytest.raises(
        ConfigError, match="schedule.warmup is 5 epochs but the run has 5; give a share below 1, or more"
    ):
        Recipe(epochs=5).replace({"schedule.warmup": 5})


def test_tables_and_fields_change_together():
    recipe = Recipe().replace({"optimizer": {"lr": 0.3}, "optimizer.momentum": 0.5}, epochs=3)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.epochs) == (0.3, 0.5, 3)
    assert recipe.optimizer.weight_decay == Recipe().optimizer.weight_decay


def test_a_new_recipe_is_that_of_the_digits():
    assert Recipe() == Recipe.default() == Recipe.default(scan("digits"))


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "fashion-mnist"])
def test_defaults_fit_their_data_and_round_trip(data):
    recipe = Recipe.default(data)
    check_fit(recipe, scan(data))
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_recipe_changed_in_every_table_comes_back_from_toml():
    recipe = Recipe().replace(
        {
            "model.block": ("basic", "bottleneck"), "data.image_size": (32, 48), "augment.pad": 3, "optimizer.lr": 1e-7,
            "schedule.warmup": 0.3, "loss.label_smoothing": 0.0, "average.window": 0.25, "seed": 2**63 - 1,
            "precision": "bf16",
        }
    )  # fmt: skip
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert hash(Recipe.from_toml(recipe.to_toml())) == hash(recipe)


def test_differences_are_told_field_by_field():
    other = Recipe().replace({"optimizer.lr": 0.2, "model.width": 0.5}, epochs=3)
    found = differences(Recipe(), other)
    assert found == {"epochs": (30, 3), "model.width": (1.0, 0.5), "optimizer.lr": (0.1, 0.2)}
    assert set(found) < set(NAMES)


def test_a_folder_of_small_images_gets_a_network_and_a_recipe_for_small_images(image_folder):
    small = Recipe.default(str(image_folder(side=32)))
    assert small.model == preset("cifar_resnet12_wide").replace(num_classes=3)
    fields = named_recipe("small-images").fields_for(images=24)
    del fields["model.preset"]
    assert fields.items() <= small.to_dict().items()


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(1, 32, 100), (960, 32, 100), (2047, 32, 48), (2048, 64, 94), (4095, 64, 48), (4096, 128, 94), (8191, 128, 48),
     (8192, 256, 94), (50_000, 256, 30)],
)  # fmt: skip
def test_batches_of_few_small_images_are_small_and_their_epochs_more(images, batch, epochs):
    fields = named_recipe("small-images").fields_for(images)
    assert (fields["batch_size"], fields["epochs"]) == (batch, epochs)
    assert fields.get("optimizer.norm_momentum") == (0.3 if batch == 32 else None)


@pytest.mark.parametrize(
    ("epochs", "milestones", "says"),
    [(20, (5.0, 30.0), "has 30 epochs but the run has 20; give shares below 1, or more epochs"),
     (20, (20.0,), "has 20 epochs but the run has 20"), (20, (0.5, 5.0), "each must come after the one before it"),
     (20, (5.0, 5.0), "each must come after"), (20, (0.5, 15.0), None), (20, (), None), (1, (0.5, 0.75), None)],
)  # fmt: skip
def test_milestones_come_one_after_the_other_within_the_run(epochs, milestones, says):
    fields = {"epochs": epochs, "schedule.name": "step", "schedule.milestones": milestones}
    if says is None:
        assert Recipe().replace(fields).schedule.milestones == milestones
        return
    with pytest.raises(ConfigError, match=f"^schedule.milestones .*{says}"):
        Recipe().replace(fields)


def default_under(data, fields, **given):
    return Recipe.default(str(data), over=fields, **given).replace(fields)


def test_with_another_optimizer_or_schedule_the_rest_of_its_table_is_new():
    usual = Recipe.default("cifar10")
    assert usual.optimizer.name == "muon"
    assert usual.schedule.name == "triangle"
    sgd = default_under("cifar10", {"optimizer.name": "sgd", "optimizer.lr": 0.3})
    assert sgd == usual.replace(optimizer=OptimizerSettings(lr=0.3))
    cosine = default_under("cifar10", {"schedule.name": "cosine"})
    assert cosine == usual.replace(schedule=ScheduleSettings())
    same = default_under("cifar10", {"optimizer.name": "muon", "schedule.name": "triangle", "epochs": 3})
    assert same == usual.replace(epochs=3)


@pytest.mark.parametrize("weights", [False, True])
def test_changes_go_over_what_suits_the_data(weights, tmp_path, image_folder):
    if weights:
        residuum.save(ResNet(preset("cifar_resnet20")), tmp_path / "w.safetensors")
    from_ = tmp_path / "w.safetensors" if weights else None
    changes = {"optimizer.name": "adamw", "optimizer.lr": 0.5, "model.dropout": 0.25}
    found = default_under(image_folder(side=32), changes, weights=from_)
    assert changes.items() <= found.to_dict().items()
    assert found.optimizer.layer_decay == (0.9 if weights else 1.0)  # rates of layers are not one optimizer's


@pytest.mark.parametrize(
    ("name", "found"), [("sgd", (0.1, 1.0)), ("adamw", (0.001, 1.0)), ("lamb", (0.005, 1.0)), ("muon", (0.01, 10.0))]
)
def test_an_optimizer_that_is_named_without_a_rate_has_its_usual_one(name, found):
    optimizer = default_under("digits", {"optimizer.name": name}).optimizer
    assert (optimizer.name, optimizer.lr, optimizer.others_lr) == (name, *found)
    rate = default_under("digits", {"optimizer.name": name, "optimizer.lr": 0.02}).optimizer
    assert (rate.lr, rate.others_lr) == (0.02, found[1])
    small = default_under("cifar10", {"optimizer.name": name}).optimizer
    assert small.lr == (0.08 if name == "muon" else found[0])


def test_another_optimizer_begins_lower_from_weights_too(tmp_path, image_folder):
    residuum.save(ResNet(preset("cifar_resnet20")), tmp_path / "w.safetensors")
    found = default_under(image_folder(side=32), {"optimizer.name": "adamw"}, weights=tmp_path / "w.safetensors")
    assert (found.optimizer.name, found.optimizer.lr, found.optimizer.head_lr) == ("adamw", 0.0001, 10.0)


def test_a_named_recipe_over_small_images_keeps_nothing_of_theirs(image_folder):
    fields = named_recipe("he2015-cifar").fields_for(24)
    found = default_under(image_folder(side=32), fields, model=fields.pop("model.preset")).to_dict()
    new = Recipe().to_dict()
    data = {"data.path", "model.num_classes"}
    own = {name for name, value in found.items() if value != fields.get(name, new[name]) and name not in data}
    assert {name for name in own if not name.startswith("model.")} == set()


def test_a_folder_of_photographs_gets_a_network_for_photographs(image_folder):
    assert Recipe.default(str(image_folder(side=80))).model.stem == "conv7"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", "'epoch'.*did you mean 'epochs'"),
        ("lr = 0.1", "did you mean 'optimizer.lr'"),
        ("[model]\nwidht = 3", r"'model\.widht'.*did you mean 'model\.width'"),
        ("model = 'resnet50'", r"\[model\] with a line preset"),
        ("data = 'digits'", r"\[data\] with a line path"),
        ("epochs = ", "not valid TOML"),
        ("[data]\npath = 3", "data.path"),
        ("device = 'cpu'", "'device' is not a field of a recipe"),
    ],
)
def test_a_wrong_file_is_refused_and_named(tmp_path, text, says):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_a_file_may_hold_a_runs_whole_recipe(tmp_path):
    recipe = Recipe.default("digits").replace(epochs=2)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.default("digits").replace(read_recipe(path)) == recipe


@pytest.mark.parametrize("changes", [{"num_classes": 3}, {"in_channels": 3}])
def test_a_network_that_does_not_fit_the_data_is_refused(changes):
    recipe = Recipe.default("digits")
    with pytest.raises(ConfigError, match=next(iter(changes))):
        check_fit(recipe.replace({f"model.{name}": value for name, value in changes.items()}), scan("digits"))


def test_a_preset_takes_the_place_of_the_datas_usual_network():
    assert Recipe.default("digits", "cifar_resnet32").model == preset("cifar_resnet32").replace(in_channels=1)


@pytest.mark.parametrize(("field", "value"), [("workers", -1), ("memory", "lots"), ("save_every", 0), ("device", 3)])
def test_an_execution_is_checked_too(field, value):
    with pytest.raises(ConfigError, match=field if field != "memory" else "lots"):
        Execution(**{field: value})


def test_an_execution_comes_back_from_toml():
    for execution in (Execution(), Execution(memory="2GB", workers=0, test=False)):
        assert Execution.from_toml(execution.to_toml()) == execution


def test_the_cache_is_the_one_of_all_downloads_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path))
    assert Execution().cache_folder == tmp_path
    assert Execution(cache=str(tmp_path / "other")).cache_folder == tmp_path / "other"
    with pytest.raises(ConfigError, match="cache is '~nobody-at-all/x'"):
        _ = Execution(cache="~nobody-at-all/x").cache_folder


def test_recipe_and_execution_share_no_name():
    assert not {f.name for f in dataclasses.fields(Execution)} & {f.name for f in dataclasses.fields(Recipe)}
