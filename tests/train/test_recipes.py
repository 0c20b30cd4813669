"""Named recipes: whole, true to the table in the documentation, and readable as files."""

import re
from pathlib import Path

import pytest

from residuum.errors import ConfigError
from residuum.presets import PRESETS
from residuum.train.recipe import Recipe, read_recipe, with_named
from residuum.train.recipes import RECIPES, named_recipe

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


def table():
    """Recipe's name to row's name to what the documentation says."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in DOCS.read_text(encoding="utf-8").split("## Published recipes")[1].splitlines()
        if line.startswith("|") and "---" not in line
    ]
    return {name: {row[0]: row[place] for row in rows[1:]} for place, name in enumerate(rows[0]) if place}


def shown(value):
    if isinstance(value, tuple):
        return ", ".join(shown(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_says_fields_that_there_are_and_its_networks_too(name):
    found = RECIPES[name]
    fields = dict(found.fields)
    preset = fields.pop("model.preset", "digits_resnet")
    assert preset in found.top1 or not found.top1
    assert all(preset in PRESETS and 50 < accuracy < 100 for preset, accuracy in found.top1.items())
    recipe = Recipe.default("digits", preset).replace(fields | {"finetune.weights": "some"})
    assert {field: recipe.to_dict()[field] for field in fields} == fields


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_is_what_the_documentations_table_says(name):
    row, fields = dict(table()[name]), RECIPES[name].fields
    preset = row.pop("network")
    assert preset == fields.get("model.preset", "any")
    assert row.pop("published top-1") == (f"{RECIPES[name].top1[preset]:g}" if RECIPES[name].top1 else "")
    assert row.pop("reproduced") == (RECIPES[name].reproduced or "no")
    said = {field: text for field, text in row.items() if text}
    assert said == {field: shown(value) for field, value in fields.items() if field != "model.preset"}


IMAGENET, CIFAR = 1_281_167, 45_000  # images that are trained on

# What was published, in the publications' own terms: epochs, batch, loss, smoothing; optimizer, rate, decay; steps or
# epochs of warm-up; sizes in training and testing, share of the central crop; policy, MixUp, CutMix, erasing, repeats;
# dropped branches; what a step adds to the average, and how many steps apart (2e-5 x 1,024 x 32 / 600 for tv2).
_TV2 = (1.0923e-3, 32)
FACTS = {
    "he2015": (90, 256, "ce", 0.0, "sgd", 0.1, 1e-4, 0, 224, 224, 0.875, None, 0.0, 0.0, 0.0, 1, 0.0, None),
    "tv2": (600, 1024, "ce", 0.1, "sgd", 0.5, 2e-5, 5, 176, 224, 224 / 232, "trivial", 0.2, 1.0, 0.1, 4, 0.0, _TV2),
    "rsb-a1": (600, 2048, "bce", 0.1, "lamb", 5e-3, 0.01, 5, 224, 224, 0.95, 0.7, 0.2, 1.0, 0.0, 3, 0.05, None),
    "rsb-a2": (300, 2048, "bce", 0.0, "lamb", 5e-3, 0.02, 5, 224, 224, 0.95, 0.7, 0.1, 1.0, 0.0, 3, 0.05, None),
    "rsb-a3": (100, 2048, "bce", 0.0, "lamb", 8e-3, 0.02, 5, 160, 224, 0.95, 0.6, 0.1, 1.0, 0.0, 1, 0.0, None),
    "rs": (350, 4096, "ce", 0.1, "sgd", 1.6, 4e-5, 5, 160, 160, 0.875, 1.0, 0.0, 0.0, 0.0, 1, 0.0, (1e-4, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_for_imagenet_is_what_was_published(name):
    fields = dict(RECIPES[name].fields)
    recipe = Recipe.default("cifar10", fields.pop("model.preset"), over=fields).replace(fields)
    (
        epochs, batch, loss, smoothing, optimizer, rate, decay, warmup, size, test_size, crop, policy, mixup, cutmix,
        erase, repeats, dropped, average,
    ) = FACTS[name]  # fmt: skip
    assert (recipe.epochs, recipe.batch_size) == (epochs, batch)
    assert (recipe.loss.name, recipe.loss.label_smoothing) == (loss, smoothing)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == (optimizer, rate, decay)
    assert recipe.schedule.warmup == warmup
    assert recipe.data.image_size == (test_size, test_size)
    assert (recipe.augment.image_size or recipe.data.image_size) == (size, size)
    assert (recipe.data.crop or 0.875) == pytest.approx(crop, abs=1e-4)
    magnitude = f"rand:2:{round(30 * policy)}" if isinstance(policy, float) else policy  # shares of the largest one
    assert recipe.augment.policy == magnitude
    assert (recipe.mixing.mixup, recipe.mixing.cutmix, recipe.augment.erase) == (mixup, cutmix, erase)
    assert (recipe.augment.repeats, recipe.model.stochastic_depth) == (repeats, dropped)
    steps = epochs * IMAGENET / batch
    window = 0.0 if average is None else average[1] / average[0] / steps
    assert recipe.average.window == pytest.approx(window, rel=5e-3)


def test_he_and_others_train_64_000_steps_on_cifar():
    fields = RECIPES["he2015-cifar"].fields
    assert fields["epochs"] * (CIFAR // fields["batch_size"]) == pytest.approx(64_000, rel=2e-3)
    assert fields["schedule.milestones"] == (32_000 / 64_000, 48_000 / 64_000)
    assert (fields["optimizer.lr"], fields["optimizer.weight_decay"], fields["augment.pad"]) == (0.1, 1e-4, 4)


def test_bit_on_imagenet_is_20_000_steps_of_512_images():
    fields = RECIPES["bit"].fields_for(IMAGENET)
    assert fields == dict(RECIPES["bit"].fields)
    assert fields["epochs"] == round(20_000 * 512 / IMAGENET)
    assert [round(20_000 * share) for share in fields["schedule.milestones"]] == [6000, 12_000, 18_000]
    assert (20_000 * fields["schedule.warmup"], fields["optimizer.lr"], fields["optimizer.weight_decay"]) == (
        500, 0.003, 0.0
    )  # fmt: skip
    assert fields["augment.crop_scale"][0] == pytest.approx((480 / 512) ** 2, abs=1e-3)


def test_the_documentations_table_has_all_of_them():
    assert table().keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_printed_and_read_as_a_file_says_the_same(tmp_path, name):
    path = tmp_path / "r.toml"
    path.write_text(RECIPES[name].to_toml())
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in read_recipe(path).items()}
    assert fields == dict(RECIPES[name].fields) == with_named(read_recipe(name))


def test_a_file_goes_over_the_recipe_that_it_names(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('recipe = "he2015"\nepochs = 3\n[optimizer]\nlr = 0.2\n')
    expected = dict(RECIPES["he2015"].fields) | {"epochs": 3, "optimizer.lr": 0.2}
    assert with_named(read_recipe(path)) == expected


def test_a_file_goes_before_a_named_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("he2015").write_text("epochs = 3\n")
    assert read_recipe("he2015") == {"epochs": 3}


def test_a_name_that_there_is_not_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="'he2016' is neither a named recipe.*; did you mean 'he2015'"):
        named_recipe("he2016")
    path = tmp_path / "r.toml"
    for text in ('recipe = "nothing"', "recipe = 3"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(str(path)) + ".*there are he2015"):
            read_recipe(path)
