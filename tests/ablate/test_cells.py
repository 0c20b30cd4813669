"""Cells: what makes one, in which order they come, and that folders alone say what has been found."""

import shutil
from dataclasses import replace

import pytest

from residuum.ablate.cells import collect
from residuum.train import environment
from tests.ablate.trainers import SIX, calls, planned, run_fake


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    from tests.ablate.trainers import ROOT

    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A study of six variants and four seeds, run. Not to be changed: copy the folder."""
    from tests.ablate.trainers import ROOT

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
        plan = planned(tmp_path_factory.mktemp("studies") / "six")
        outcome, _ = run_fake(plan)
    assert outcome.finished == 24
    return plan.folder


@pytest.fixture
def copied(six, tmp_path):
    return shutil.copytree(six, tmp_path / "six")


def keys(plan):
    return {(cell.variants, cell.seed): cell.key for cell in plan.cells}


def test_cells_come_seed_by_seed_each_variant_in_another_place(tmp_path):
    order = [(cell.seed, cell.variants[0]) for cell in planned(tmp_path).cells]
    assert [seed for seed, _ in order] == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    places = [[name for s, name in order if s == seed].index("v2") for seed in range(4)]
    assert len(set(places)) == 4


def test_a_key_depends_on_recipe_seed_code_torch_and_data(tmp_path, monkeypatch, image_folder):
    before = keys(planned(tmp_path))
    assert len(set(before.values())) == 24
    assert keys(planned(tmp_path, SIX + "\n[base]\nepochs = 31")).items().isdisjoint(before.items())
    monkeypatch.setattr(environment, "code_digest", lambda: "other")
    assert keys(planned(tmp_path)).items().isdisjoint(before.items())


def test_a_key_does_not_depend_on_how_cells_are_run_or_what_is_shown(tmp_path):
    other = SIX.replace("workers = 2", "workers = 1\nretries = 3").replace("'six'", "'others'\nmargin = 1.0")
    assert keys(planned(tmp_path, other)) == keys(planned(tmp_path / "b"))


def test_a_key_does_not_depend_on_the_place_of_the_data(tmp_path, image_folder):
    root = image_folder()
    text = SIX.replace("seeds = 4", "seeds = 1") + "[base.data]\npath = '{}'\nimage_size = [16, 16]"
    before = keys(planned(tmp_path, text.format(root)))
    assert keys(planned(tmp_path, text.format(root.rename(tmp_path / "moved")))) == before
    (tmp_path / "moved" / "train" / "red" / "0.png").unlink()
    assert keys(planned(tmp_path, text.format(tmp_path / "moved"))).items().isdisjoint(before.items())


def test_variants_of_one_configuration_share_a_cell(tmp_path):
    text = "design = 'list'\nseeds = 2\n[variant.a]\n[variant.b]\nlabel_smoothing = 0.05\n[variant.c]\nlr = 0.2\n"
    plan = planned(tmp_path, text)
    assert {cell.variants for cell in plan.cells} == {("a", "b"), ("c",)}
    assert len(plan.cells) == 4
    found = collect(plan)
    assert len(found.cells) == 6
    assert found.at("a", 1).key == found.at("b", 1).key


def test_costs_are_known_before_anything_runs(tmp_path):
    text = "name = 'x'\ndesign = 'list'\n[variant.a]\n[variant.b]\nwidth = 0.5\n"
    a, b = planned(tmp_path, text).variants
    assert 0 < b.parameters < a.parameters
    assert 0 < b.macs < a.macs
    assert not (tmp_path / "cells").exists()


@pytest.mark.slow
def test_what_was_found_is_read_from_the_folders(six):
    found = collect(planned(six))
    cell = found.at("v3", 2)
    assert cell.status == "done"
    assert cell.metrics["test_accuracy"] == pytest.approx(0.9 - 0.03 + 0.002)
    assert cell.metrics["parameters"] == found.variants[3].parameters
    assert cell.correct == (True, True, False, True)
    assert cell.weights == "0.03"
    assert len(cell.history) == 1
    assert (found.base, found.extended, found.older) == ("v0", False, ())


@pytest.mark.slow
def test_a_folder_that_is_gone_is_a_cell_to_run_and_no_other_is_run_again(copied):
    plan = planned(copied)
    gone = next(cell for cell in plan.cells if (cell.variants, cell.seed) == (("v3",), 2))
    shutil.rmtree(gone.folder)
    assert collect(plan).at("v3", 2).status == "waiting"
    assert sum(cell.status == "done" for cell in collect(plan).cells) == 23
    before = len(calls(plan))
    assert run_fake(plan)[0].finished == 1
    assert calls(plan)[before:] == ["v3 2"]


@pytest.mark.slow
def test_numbers_that_are_gone_are_computed_anew(copied):
    plan = planned(copied)
    (plan.cells[0].folder / "metrics.jsonl").unlink()
    assert collect(plan).at("v0", 0).status == "waiting"
    assert run_fake(plan)[0].finished == 1


@pytest.mark.slow
def test_more_seeds_run_the_new_ones_alone_and_the_study_says_extended(copied):
    plan = planned(copied, seeds=tuple(range(6)))
    before = len(calls(plan))
    assert run_fake(plan)[0].finished == 12
    assert {call.split()[1] for call in calls(plan)[before:]} == {"4", "5"}
    assert collect(plan).extended
    assert not collect(planned(copied)).extended


def test_cells_of_older_code_are_listed_and_do_not_count(copied, monkeypatch):
    monkeypatch.setattr(environment, "code_digest", lambda: "newer")
    found = collect(planned(copied))
    assert {cell.status for cell in found.cells} == {"waiting"}
    assert len(found.older) == 24
    assert found.older[0].metrics["test_accuracy"] > 0


def test_a_variant_with_a_new_name_keeps_its_cells(copied):
    found = collect(planned(copied, SIX.replace("v3", "third")))
    assert found.at("third", 1).status == "done"
    assert found.older == ()


def test_a_record_of_another_cell_is_not_believed(copied):
    plan = planned(copied)
    one, two = plan.cells[:2]
    shutil.copy(one.folder / "cell.json", two.folder / "cell.json")
    again = collect(planned(copied))
    assert again.at(two.variants[0], 0).status == "waiting"


def test_the_margin_and_what_is_asked_reach_the_result(six):
    plan = planned(six)
    plan = replace(plan, study=replace(plan.study, question=replace(plan.study.question, margin=0.5, looks=(2, 4))))
    found = collect(plan)
    assert found.margin == pytest.approx(0.005)
    assert found.looks == (2, 4)
    assert found.about["torch"] == plan.torch


def test_the_line_that_repeats_a_cell_says_what_a_recipe_file_cannot(tmp_path, image_folder):
    text = "design = 'list'\nseeds = 1\n[base]\ndata.path = '{}'\n[variant.a]\n[variant.b]\nclip = 1.0\n"
    plan = planned(tmp_path, text.format(image_folder()))
    assert all("None" not in cell.command for cell in collect(plan).cells)
    usual = plan.usual.replace({"optimizer.clip": 1.0})
    object.__setattr__(plan, "usual", usual)  # as if this data went with clipped gradients
    lines = {cell.variant: cell.command for cell in collect(plan).cells}
    assert lines["a"].endswith(" --optimizer.clip None")
    assert "None" not in lines["b"]
