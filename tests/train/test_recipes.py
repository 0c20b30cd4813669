"""Named recipes: whole, true to the table in the documentation, and readable as files."""

import re
from pathlib import Path

import pytest

from residuum.errors import ConfigError
from residuum.presets import PRESETS
from residuum.train.recipe import Recipe, read_recipe
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
    assert fields["model.preset"] in found.top1
    assert all(preset in PRESETS and 50 < accuracy < 100 for preset, accuracy in found.top1.items())
    recipe = Recipe.default("digits", fields.pop("model.preset")).replace(fields)
    assert {field: recipe.to_dict()[field] for field in fields} == fields


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_is_what_the_documentations_table_says(name):
    row, fields = dict(table()[name]), RECIPES[name].fields
    preset = row.pop("network")
    assert preset == fields["model.preset"]
    assert row.pop("published top-1") == f"{RECIPES[name].top1[preset]:g}"
    assert row.pop("reproduced") == (RECIPES[name].reproduced or "no")
    said = {field: text for field, text in row.items() if text}
    assert said == {field: shown(value) for field, value in fields.items() if field != "model.preset"}


def test_the_documentations_table_has_all_of_them():
    assert table().keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_printed_and_read_as_a_file_says_the_same(tmp_path, name):
    path = tmp_path / "r.toml"
    path.write_text(RECIPES[name].to_toml())
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in read_recipe(path).items()}
    assert fields == dict(RECIPES[name].fields) == read_recipe(name)


def test_a_file_goes_over_the_recipe_that_it_names(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('recipe = "he2015"\nepochs = 3\n[optimizer]\nlr = 0.2\n')
    expected = dict(RECIPES["he2015"].fields) | {"epochs": 3, "optimizer.lr": 0.2}
    assert read_recipe(path) == expected


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
