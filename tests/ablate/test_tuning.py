"""Tuning: alike for every variant, with seeds of its own, before the study, and gone on from as all is."""

import json
from dataclasses import replace

import pytest

from residuum.ablate.cells import collect, lay_out, settled
from residuum.ablate.results import Tuned
from residuum.ablate.study import TUNING_SEEDS, Study
from residuum.errors import ConfigError
from tests.ablate.trainers import ROOT, calls, run_fake

TEXT = """
design = "list"
seeds = 2
[tune]
lr = [0.1, 0.2, 0.3]
seeds = 2
[run]
threads = 1
[variant.a]
label_smoothing = 0.0
[variant.b]
label_smoothing = 0.1
"""


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def planned(folder, text=TEXT):
    return lay_out(Study.from_toml(text), folder)


@pytest.mark.slow
def test_each_variant_is_tuned_first_and_trained_with_its_own_best_value(tmp_path):
    plan = planned(tmp_path)
    assert (len(plan.choosing), len(plan.cells)) == (12, 0)
    assert {cell.seed for cell in plan.choosing} == {TUNING_SEEDS, TUNING_SEEDS + 1}
    outcome, _ = run_fake(plan)
    assert outcome.finished == 16
    order = [call.split()[-1] for call in calls(plan)]
    assert [int(seed) >= TUNING_SEEDS for seed in order] == [True] * 12 + [False] * 4
    found = collect(settled(plan))
    # the stand-in is best at a learning rate of 0.2 without smoothing, and of 0.3 with it
    assert {v: found.tuned.chosen(v)["optimizer.lr"] for v in ("a", "b")} == {"a": 0.2, "b": 0.3}
    assert {settled(plan).recipes[v].optimizer.lr for v in ("a", "b")} == {0.2, 0.3}
    assert {cell.status for cell in found.cells} == {"done"}
    for cell in plan.choosing:
        assert "test_accuracy" not in (cell.folder / "metrics.jsonl").read_text()

    before = len(calls(plan))
    assert run_fake(planned(tmp_path))[0].finished == 0
    assert len(calls(plan)) == before


@pytest.mark.slow
def test_a_cell_that_fails_in_tuning_holds_back_its_variant_alone(tmp_path):
    plan = planned(tmp_path)
    (tmp_path / "cells").mkdir()
    bad = next(cell for cell in plan.choosing if cell.variants == ("a, lr=0.1",))
    (tmp_path / "wrong.json").write_text(json.dumps({f"a, lr=0.1 {bad.seed}": "raises"}))
    outcome, _ = run_fake(plan)
    assert [cell.key for cell in outcome.failed] == [bad.key]
    found = collect(settled(plan))
    assert {cell.status for cell in found.cells if cell.variant == "a"} == {"waiting"}
    assert {cell.status for cell in found.cells if cell.variant == "b"} == {"done"}
    (tmp_path / "wrong.json").unlink()
    assert run_fake(planned(tmp_path))[0].finished == 3
    assert {cell.status for cell in collect(planned(tmp_path)).cells} == {"done"}


@pytest.mark.slow
def test_what_diverged_is_not_chosen_where_something_else_did_not(tmp_path):
    plan = planned(tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "wrong.json").write_text(json.dumps({f"a, lr=0.2 {TUNING_SEEDS}": "diverges"}))
    run_fake(plan)
    tuned = collect(settled(plan)).tuned
    assert isinstance(tuned, Tuned)
    assert tuned.chosen("a")["optimizer.lr"] != 0.2
    assert next(one for one in tuned.tried if one.values["optimizer.lr"] == 0.2 and one.variant == "a").diverged == 1


def test_several_fields_are_tried_in_all_combinations(tmp_path):
    plan = planned(tmp_path, TEXT.replace("seeds = 2\n[run]", "weight_decay = [0.0, 0.001]\nseeds = 1\n[run]"))
    assert len(plan.choosing) == 12
    assert plan.study.tuning.combinations[1] == {"optimizer.lr": 0.1, "optimizer.weight_decay": 0.001}


def test_a_study_of_a_loss_is_tuned_by_the_loss():
    assert Study.from_toml(TEXT).tuning.metric == "val_accuracy"
    assert Study.from_toml("metric = 'test_loss'" + TEXT).tuning.metric == "val_loss"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr = [0.1, 0.2, 0.3]", "lr = 0.1", "it must be a list of two or more unlike values"),
        ("lr = [0.1, 0.2, 0.3]", "", "[tune] names no field"),
        ("lr = [0.1, 0.2, 0.3]", "label_smoothing = [0.1, 0.2]", "is tuned, but variant 'a' sets it"),
        ("seeds = 2\n[run]", "seeds = [0]\n[run]", "tune.seeds and seeds both have 0"),
        ("seeds = 2\n[run]", "seeds = 0\n[run]", "tune.seeds is 0"),
        ("seeds = 2\n[run]", "metric = 'test_accuracy'\n[run]", "tune.metric is 'test_accuracy'"),
        ("lr =", "learning =", "'learning' is not a field of a recipe"),
        ("lr = [0.1, 0.2, 0.3]", "lr = [0.1, -1]", "variant 'a' with lr=-1: optimizer.lr is -1"),
        ("[run]", "[base.data]\nholdout = 0\n[run]", "variant 'a' holds out no images, and val_accuracy needs some"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_sentence(tmp_path, old, new, said):
    with pytest.raises(ConfigError) as error:
        planned(tmp_path, TEXT.replace(old, new, 1) if "run" not in old else TEXT.replace(old, new))
    assert said in str(error.value)


@pytest.mark.slow
def test_a_study_that_is_extended_keeps_what_was_chosen(tmp_path):
    plan = planned(tmp_path)
    run_fake(plan)
    study = plan.study
    longer = lay_out(replace(study, question=replace(study.question, seeds=(0, 1, 2))), tmp_path)
    assert run_fake(longer)[0].finished == 2
