"""Studies as data: which variants follow, and what is refused before anything runs."""

import pytest

from residuum.ablate.study import Running, Study, from_flags, recipes_of, slug
from residuum.data.catalog import scan
from residuum.errors import ConfigError
from residuum.train.recipe import OptimizerSettings
from residuum.train.recipes import RECIPES

FACTORS = """
[factor.SE]
on = { "model.attention" = "se" }
off = { "model.attention" = "none" }
[factor.D]
on = { "model.downsample" = "avg" }
off = { "model.downsample" = "pad" }
"""


def names(text):
    return [variant.name for variant in Study.from_toml(text).variants]


def test_ablate_takes_each_factor_from_the_full_network():
    study = Study.from_toml("design = 'ablate'" + FACTORS)
    assert [v.name for v in study.variants] == ["full", "no SE", "no D"]
    assert study.variants[1].changes == {"model.attention": "none", "model.downsample": "avg"}
    assert study.variants[1].levels == {"SE": "off", "D": "on"}


def test_add_puts_each_factor_to_the_base():
    study = Study.from_toml("design = 'add'" + FACTORS)
    assert [v.name for v in study.variants] == ["base", "+SE", "+D"]
    assert study.variants[2].changes == {"model.attention": "none", "model.downsample": "avg"}


def test_a_factorial_has_every_combination_and_begins_with_all_off():
    assert names("design = 'factorial'" + FACTORS) == ["SE=off D=off", "SE=off D=on", "SE=on D=off", "SE=on D=on"]


def test_a_grid_has_every_combination_of_levels():
    text = "design = 'grid'\n[factor.s.levels]\nlabel_smoothing = [0.0, 0.1]\n[factor.lr.levels]\nlr = [1, 2, 3]"
    assert names(text) == ["s=0 lr=1", "s=0 lr=2", "s=0 lr=3", "s=0.1 lr=1", "s=0.1 lr=2", "s=0.1 lr=3"]


def test_flags_make_the_grid_that_a_file_would():
    study = from_flags(["model.attention=none,se,eca", "flip=none,random"], {}, Study.from_toml(FACTORS).running)
    assert [v.name for v in study.variants][:3] == [f"attention=none flip={f}" for f in ("none", "random")] + [
        "attention=se flip=none"
    ]
    assert study.variants[3].changes == {"model.attention": "se", "augment.flip": "random"}
    assert study.question.name == "attention-flip"


def test_values_of_flags_are_numbers_truths_lists_or_words():
    study = from_flags(["optimizer.nesterov=true,false"], {}, Study.from_toml(FACTORS).running)
    assert [v.changes["optimizer.nesterov"] for v in study.variants] == [True, False]
    study = from_flags(["model.depths=[1,1,1],[2,2,2]", "clip=None,1.5"], {}, study.running)
    assert study.variants[3].changes == {"model.depths": [2, 2, 2], "optimizer.clip": 1.5}
    assert study.variants[0].changes["optimizer.clip"] is None


def test_the_base_is_read_as_a_recipe_file_is():
    name = next(name for name, recipe in RECIPES.items() if not recipe.from_weights)
    text = f"[base]\nrecipe = '{name}'\nepochs = 71\n[base.model]\nwidth = 0.5\n"
    recipe = recipes_of(Study.from_toml(text + FACTORS), scan("cifar10"))["no SE"]
    assert (recipe.epochs, recipe.model.width, recipe.model.attention) == (71, 0.5, "none")


def test_a_base_by_a_named_recipe_goes_by_the_number_of_images(image_folder):
    few, flags = (
        scan(image_folder(side=16)),
        from_flags(["model.attention=none,se"], {"recipe": "small-images"}, Running()),
    )
    file = Study.from_toml("[base]\nrecipe = 'small-images'\n" + FACTORS)
    for study in (file, flags):
        for recipe in recipes_of(study, few).values():
            assert (recipe.epochs, recipe.batch_size) == (100, 32)
    over = Study.from_toml("[base]\nrecipe = 'small-images'\nepochs = 3\n" + FACTORS)
    assert {(r.epochs, r.batch_size) for r in recipes_of(over, few).values()} == {(3, 32)}


@pytest.mark.parametrize("images", [1, 2])
def test_a_metric_of_validation_images_needs_enough_to_hold_some_out(image_folder, images):
    catalog = scan(image_folder(side=16, train=images))
    study = Study.from_toml("metric = 'val_accuracy'\n[base.data]\nholdout = 0.5\n" + FACTORS)
    if images == 2:
        assert len(recipes_of(study, catalog)) == 3
        return
    with pytest.raises(ConfigError, match="holds out no images, and val_accuracy needs some"):
        recipes_of(study, catalog)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.from_weights])
def test_a_base_that_starts_from_weights_needs_them(name):
    study = from_flags(["lr=0.1,0.2"], {"recipe": name}, Running())
    with pytest.raises(ConfigError, match=f"the recipe {name} starts from weights; name them by --weights"):
        recipes_of(study, scan("cifar10"))


def test_a_variant_with_another_optimizer_has_nothing_of_the_bases():
    base = {"recipe": "he2015-cifar", "optimizer.bias_lr": 2.0}
    study = from_flags(["optimizer.name=sgd,adamw"], base, Running())
    same, other = (recipe.optimizer for recipe in recipes_of(study, scan("cifar10")).values())
    assert (same.lr, same.nesterov, same.weight_decay, same.bias_lr) == (0.1, False, 1e-4, 2.0)
    assert other == OptimizerSettings(name="adamw", lr=0.001, bias_lr=2.0)  # which was not said of one of them


def test_the_margin_is_in_points_of_an_accuracy():
    assert Study.from_toml("margin = 0.3" + FACTORS).margin == pytest.approx(0.003)
    assert Study.from_toml("margin = 0.3\nmetric = 'test_loss'" + FACTORS).margin == 0.3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = 0" + FACTORS, "seeds is 0"),
        ("seeds = [1, 1]" + FACTORS, "unlike"),
        ("metric = 'accuracy'" + FACTORS, "'accuracy' is not a metric"),
        ("name = '../x'" + FACTORS, "name is '../x'"),
        ("colour = 1" + FACTORS, "'colour' is not a part of a study"),
        ("[run]\nworker = 2" + FACTORS, "'worker' is not a field of [run]; did you mean 'workers'?"),
        ("[run]\ntimeout = 'soon'" + FACTORS, "run.timeout is 'soon'"),
        ("[base]\nseed = 1" + FACTORS, "has a seed"),
        ("[base]\nrecipe = 5" + FACTORS, "5 is neither a named recipe nor a recipe file"),
        ("[base]\ncolour = 1" + FACTORS, "'colour' is not a field of a recipe"),
        ("design = 'list'" + FACTORS, "needs [variant.NAME] tables"),
        ("design = 'grid'", "needs [factor.NAME] tables"),
        ("[factor.a]\non = { 'model.attention' = 'se' }", "factor 'a' must have on and off, or levels"),
        ("[factor.a]\nlevels = { lr = [1, 2] }", "factor 'a' has levels, which are for the designs grid"),
        ("design = 'grid'\n[factor.a]\nlevels = { lr = [1, 1] }", "factor 'a' has a level twice"),
        ("design = 'grid'\n[factor.a]\nlevels = { lr = 1 }", "needs fields with a list"),
        ("[factor.a]\non = { name = 'x' }\noff = { name = 'y' }", "'name' is the name of several fields"),
        ("[factor.a]\non = { seed = 1 }\noff = { seed = 2 }", "changes seed"),
        ("[factor.a]\non = { model = 1 }\noff = { model = 2 }", "name one of its fields"),
        ("design = 'factorial'" + FACTORS + FACTORS.replace("SE", "S").replace(".D]", ".E]"), "both set"),
    ],
)
def test_a_wrong_study_is_refused_in_a_sentence(text, said):
    with pytest.raises(ConfigError) as error:
        Study.from_toml(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[base.model]\nwidth = 0", "variant 'full': width is 0.0"),
        ("[base.model]\npreset = 'nonet'", "variant 'full': "),
        ("[base.model]\nnum_classes = 7", "variant 'full': model.num_classes is 7"),
    ],
)
def test_a_recipe_that_cannot_be_names_its_variant(text, said):
    with pytest.raises(ConfigError) as error:
        recipes_of(Study.from_toml(FACTORS + text), scan("digits"))
    assert said in str(error.value)


def test_a_metric_of_a_split_that_the_data_has_not_is_refused(image_folder):
    root = image_folder()
    (root / "test").rename(root / "val")
    with pytest.raises(ConfigError, match="has no test split"):
        recipes_of(Study.from_toml(FACTORS), scan(root))


def test_names_of_folders_have_nothing_that_a_file_system_minds():
    assert slug("no SE/../x") == "no-SE-..-x"
    assert len(slug("x" * 300)) <= 48
    assert slug("é" * 3) != slug("ü" * 3)
