"""Runs in groups of one recipe: what makes a group, what is left out, and what is said about it."""

import json
import shutil
from pathlib import Path

import pytest
from tests.evaluation.folders import evaluated, make_run

from residuum.errors import RunError
from residuum.evaluation.runs import compare, in_short, names_of


@pytest.fixture
def runs(tmp_path):
    """Make runs: `runs(a1={}, a2={"seed": 1})`; gives their paths."""

    def make(**described):
        return [make_run(tmp_path / name, **fields) for name, fields in described.items()]

    return make


def topics(found):
    return {note.topic: note.text for note in found.notes}


def test_runs_of_one_recipe_are_a_group_over_their_seeds(runs):
    found = compare(runs(
        a0={"accuracies": (0.5, 0.90)}, b0={"accuracies": (0.5, 0.93), "optimizer.lr": 0.2},
        a1={"accuracies": (0.5, 0.80), "seed": 1}, b1={"accuracies": (0.5, 0.82), "optimizer.lr": 0.2, "seed": 1},
        a2={"accuracies": (0.5, 0.70), "seed": 2}, b2={"accuracies": (0.5, 0.725), "optimizer.lr": 0.2, "seed": 2},
    ))  # fmt: skip
    first, second = found.groups
    assert found.number == "val_accuracy"
    assert [run.name for run in second.runs] == ["b0", "b1", "b2"]
    assert (first.values, second.values) == ({0: 0.90, 1: 0.80, 2: 0.70}, {0: 0.93, 1: 0.82, 2: 0.725})
    assert (first.difference, first.changes) == (None, {})
    assert second.changes == {"optimizer.lr": (0.1, 0.2)}
    assert (second.difference.over, second.difference.verdict) == ("3 pairs", "higher")
    assert found.notes == ()


def test_the_number_is_that_of_the_last_epoch_and_not_of_the_best(runs):
    assert compare(runs(a={"accuracies": (0.5, 0.99, 0.7)})).groups[0].mean.mean == 0.7


def test_unfinished_runs_are_said_and_left_out(runs):
    found = compare(runs(a={}, b={"epochs": 9, "seed": 1}))
    assert [run.name for group in found.groups for run in group.runs] == ["a"]
    assert "b' is at epoch 2 of 9" in topics(found)["left out"]
    with pytest.raises(RunError, match="none of these runs is finished.*epoch 2 of 9"):
        compare(runs(c={"epochs": 9}))


@pytest.mark.parametrize(
    ("fields", "topic", "says"),
    [
        ({"precision": "bf16"}, "precision", "fp32 in A; bf16 in B"),
        ({"digest": "e" * 64}, "data", "digits (dddddddd) in A; digits (eeeeeeee) in B; its files have other names"),
        ({"data.holdout": 0.3}, "data", "accuracies are of other images"),
        ({"here": {"code": "fff"}, "seed": 1}, "code", "0.1.0, abc123 in A (a); 0.1.0, fff in A (b)"),
        ({"here": {"torch": "2.11"}, "seed": 1}, "libraries", "2.14.1, 0.29.1, 3.12.1 in A (a); 2.11, 0.29.1"),
        ({"here": {"device": "H100"}, "seed": 1}, "device", "cpu, X, 1 in A (a); H100, X, 1 in A (b)"),
        ({"here": False, "seed": 1}, "code", "not recorded in A (b)"),
        ({"seed": 0}, "again", "a, b have one recipe and seed 0"),
    ],
)
def test_what_differs_beside_the_recipe_is_said(runs, fields, topic, says):
    assert says in topics(compare(runs(a={}, b=fields)))[topic]


def test_a_change_of_environment_within_a_run_is_said(runs):
    one, two = runs(a={}, b={"seed": 1})
    entries = json.loads((two / "environment.json").read_text())
    (two / "environment.json").write_text(json.dumps([*entries, {**entries[0], "epoch": 1, "torch": "3.0"}]))
    assert "2.14.1, 0.29.1, 3.12.1, then 3.0, 0.29.1, 3.12.1 in A (b)" in topics(compare([one, two]))["libraries"]


def test_identical_weights_are_said_whatever_else_their_files_say(runs):
    found = compare(runs(a={"weights": b"w" * 64}, b={"weights": b"w" * 64, "model.dropout": 0.5}, c={"seed": 1}))
    assert topics(found) == {"identical": "a, b have the very same weights"}


def test_the_same_data_at_another_place_makes_no_other_recipe(runs):
    assert len(compare(runs(a={}, b={"data.path": "/elsewhere/digits", "seed": 1})).groups) == 1


def test_two_runs_of_one_recipe_and_seed_count_once(runs):
    (group,) = compare(
        runs(a={"accuracies": (0.8,)}, b={"accuracies": (0.9,)}, c={"accuracies": (0.5,), "seed": 1})
    ).groups
    assert group.values == {0: pytest.approx(0.85), 1: 0.5}
    assert group.mean.n == 2


def test_the_test_split_is_taken_where_it_is_asked_for_or_where_there_is_no_other(runs, tmp_path):
    paths = runs(a={"test": 0.6})
    assert compare(paths).number == "val_accuracy"
    assert compare(paths, "test").groups[0].mean.mean == 0.6
    rows = [json.loads(line) for line in (paths[0] / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["val_accuracy"]
    (paths[0] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compare(paths).number == "test_accuracy"
    with pytest.raises(RunError, match="'a' has no val accuracy"):
        compare(paths, "val")


def test_one_seed_is_judged_over_images_where_both_were_evaluated(runs):
    one, two = runs(a={}, b={"optimizer.lr": 0.2})
    assert compare([one, two]).groups[1].difference.over == "1 pair"
    evaluated(one, [True] * 50 + [False] * 50)
    evaluated(two, [True] * 90 + [False] * 10)
    gap = compare([one, two]).groups[1].difference
    assert (gap.over, gap.value, gap.verdict) == ("100 images", 0.4, "higher")


def test_predictions_of_another_split_or_of_other_images_are_not_taken(runs):
    one, two = runs(a={}, b={"optimizer.lr": 0.2})
    evaluated(one, [True] * 50)
    evaluated(two, [True] * 50, split="test")
    assert compare([one, two]).groups[1].difference.over == "1 pair"
    evaluated(two, [True] * 49, name="again")
    assert compare([one, two]).groups[1].difference.over == "1 pair"


@pytest.mark.parametrize("more", [{"mirrored": True}, {"weights_sha256": "0"}, {"weights_sha256": None}])
def test_predictions_of_other_weights_or_of_mirrored_images_are_not_taken(runs, more):
    one, two = runs(a={}, b={"optimizer.lr": 0.2})
    evaluated(one, [True] * 50 + [False] * 50)
    evaluated(two, [True] * 90 + [False] * 10)
    evaluated(two, [False] * 100, name="newer", **more)
    gap = compare([one, two]).groups[1].difference
    assert (gap.over, gap.value) == ("100 images", 0.4)


@pytest.mark.parametrize("name", ["recipe.toml", "data.json", "metrics.jsonl", "environment.json"])
def test_files_that_cannot_be_read_are_named(runs, name):
    (path,) = runs(a={})
    (path / name).write_bytes(b"\xff{")
    with pytest.raises(RunError, match=name):
        compare([path])


@pytest.mark.parametrize("header", [b"[1]", b"{", b"7", b"[" * 100_000])
def test_weights_that_are_damaged_are_refused(runs, header):
    (path,) = runs(a={})
    (path / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunError, match=r"weights\.safetensors' is damaged"):
        compare([path])


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"high"', "null", "1" * 400])
def test_an_accuracy_that_is_no_number_is_not_compared(runs, value):
    (path,) = runs(a={})
    lines = (path / "metrics.jsonl").read_text().replace('"val_accuracy": 0.9', f'"val_accuracy": {value}')
    (path / "metrics.jsonl").write_text(lines)
    with pytest.raises(RunError, match="'a' has no"):
        compare([path])


def test_runs_are_called_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    paths = [make_run(tmp_path / study / "seed-0", (0.5,)) for study in ("wide", "deep")]
    assert [run.name for run in compare(paths).groups[0].runs] == ["wide/seed-0", "deep/seed-0"]
    assert names_of([Path("/a/x"), Path("/b/y")]) == ["x", "y"]
    assert names_of([Path("/x"), Path("/y/x")]) == ["/x", "y/x"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is no run: it has no recipe\.toml and no data\.json"):
        compare([tmp_path])


def test_a_real_run_is_read(finished, tmp_path):
    again = shutil.copytree(finished.path, tmp_path / "again")
    found = compare([finished.path, again])
    assert topics(found).keys() == {"again", "identical"}
    assert found.groups[0].runs[0].last("val_accuracy") == finished.result.metrics["val_accuracy"]


def test_changes_are_short():
    changes = {
        "optimizer.lr": (0.1, 0.25),
        "model.depths": ((1, 2), (3, 4)),
        "optimizer.clip": (None, 1.0),
        "x": (1, 2),
    }
    assert (
        in_short(changes, 3)
        == "optimizer.lr 0.1 -> 0.25, model.depths [1, 2] -> [3, 4], optimizer.clip none -> 1, 1 more"
    )
