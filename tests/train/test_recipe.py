"""The recipe: checked, in and out of TOML, command line over file over default."""

import dataclasses

import pytest

from residuum import ConfigError, preset
from residuum.data.catalog import facts
from residuum.train.recipe import Recipe, check_fit, default_recipe, recipe_file, with_file

WRONG = {
    "epochs": [0, 1.5, "3"], "batch_size": [1, -2], "lr": [0, -1, float("nan"), "fast"], "momentum": [1, -0.1],
    "weight_decay": [-1, 2], "warmup": [1.0, -0.1], "label_smoothing": [1.0], "pad": [-1], "flip": [1, "no"],
    "image_size": [-3], "seed": [-1, 2**63], "precision": ["fp16"], "workers": [-1], "skip_bad_images": [0],
    "device": [0], "data": [3], "memory": [3, "lots", "-1GB"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_wrong_value_is_refused_with_the_field_named(name, value):
    with pytest.raises(ConfigError, match=name):
        Recipe(**{name: value})


def test_every_field_but_the_model_has_wrong_values_to_try():
    assert set(WRONG) == {f.name for f in dataclasses.fields(Recipe)} - {"model"}


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "fashion-mnist"])
def test_defaults_fit_their_data_and_round_trip(data):
    recipe = default_recipe(facts(data))
    check_fit(recipe, facts(data))
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_folder_of_small_images_gets_a_network_for_small_images(image_folder):
    small = default_recipe(facts(str(image_folder(side=32))))
    assert small.model.stem == "conv3"
    assert small.model.num_classes == 3


def test_a_folder_of_photographs_gets_a_network_for_photographs(image_folder):
    assert default_recipe(facts(str(image_folder(side=80)))).model.stem == "conv7"


def test_the_command_line_goes_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('epochs = 7\nlr = 0.01\n[model]\npreset = "cifar_resnet20"\nwidth = 0.5\n')
    from residuum.cli.main import parse

    recipe = parse(["train", "--recipe", str(path), "--lr", "0.02", "--model.dropout", "0.1"]).recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (7, 0.02, default_recipe(facts("digits")).batch_size)
    expected = preset("cifar_resnet20").replace(width=0.5, dropout=0.1, in_channels=1)
    assert recipe.model == expected


def test_a_preset_on_the_line_goes_over_the_files(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\npreset = "cifar_resnet20"\n')
    from residuum.cli.main import parse

    recipe = parse(["train", "--recipe", str(path), "--model", "cifar_resnet32"]).recipe
    assert recipe.model.depths == (5, 5, 5)


def test_a_recipe_files_data_decides_the_defaults(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('data = "cifar10"\n')
    from residuum.cli.main import parse

    recipe = parse(["train", "--recipe", str(path)]).recipe
    assert recipe == default_recipe(facts("cifar10"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", "'epoch'.*did you mean 'epochs'"),
        ("[model]\nwidht = 3", "'widht'.*did you mean 'width'"),
        ("model = 'resnet50'", r"\[model\]"),
        ("epochs = ", "not valid TOML"),
        ("data = 3", "data"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, says):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        recipe_file(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe_file(tmp_path / "none.toml")


def test_a_file_may_hold_a_runs_whole_recipe(tmp_path):
    recipe = default_recipe(facts("digits")).replace(epochs=2)
    path = tmp_path / "config.toml"
    path.write_text(recipe.to_toml())
    assert with_file(default_recipe(facts("digits")), recipe_file(path)) == recipe


@pytest.mark.parametrize("changes", [{"num_classes": 3}, {"in_channels": 3}])
def test_a_network_that_does_not_fit_the_data_is_refused(changes):
    recipe = default_recipe(facts("digits"))
    with pytest.raises(ConfigError, match=next(iter(changes))):
        check_fit(recipe.replace(model=recipe.model.replace(**changes)), facts("digits"))
