"""Images of several classes: figures against scikit-learn's, and the way from a list to a run and predictions."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from tests.train.runs import tiny

import residuum
from residuum.errors import ConfigError
from residuum.evaluation.several import average_precision, count_several
from residuum.inference.predict import predict
from residuum.train import fit

NAMES = ("cat", "dog", "fox", "owl")


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct scores", "ties"])
@pytest.mark.parametrize("never", [None, 2], ids=["all classes", "one class never"])
def test_every_figure_is_scikit_learns(rounded, never):
    random = np.random.default_rng(1)
    labels = (random.random((300, 4)) < (0.1, 0.5, 0.3, 0.02)).astype(np.int64)
    if never is not None:
        labels[:, never] = 0
    scores = np.clip(0.4 * labels + 0.7 * random.random((300, 4)), 0, 1)
    scores = scores.round(1) if rounded else scores
    found, said = count_several(NAMES, labels, scores, np.zeros(300)), scores >= 0.5
    there = [i for i in range(4) if i != never]
    theirs = metrics.average_precision_score(labels[:, there], scores[:, there], average=None)
    assert found.average_precision[there] == pytest.approx(theirs, rel=1e-12)
    assert found.mean_average_precision == pytest.approx(theirs.mean(), rel=1e-12)
    assert found.micro_f1 == pytest.approx(metrics.f1_score(labels, said, average="micro"), rel=1e-12)
    macro = metrics.f1_score(labels, said, average="macro", zero_division=np.nan)
    assert found.macro_f1 == pytest.approx(macro, rel=1e-12)
    assert found.exact.value == metrics.accuracy_score(labels, said)
    table = metrics.precision_recall_fscore_support(labels, said, zero_division=np.nan)
    for row, other in zip(found.by_class(), zip(*table, strict=True), strict=True):
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(other, rel=1e-12, nan_ok=True)


def test_a_class_that_never_occurs_has_no_average_precision():
    assert np.isnan(average_precision(np.zeros(3, bool), np.array([0.1, 0.2, 0.3])))


def picture(classes, seed, side=16):
    """An image whose red, green and blue halves say which of three classes it is of."""
    pixels = np.random.default_rng(seed).integers(0, 60, (side, side, 3)).astype(np.uint8)
    for i in classes:
        pixels[..., i] += 180
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A list of images of none to three of the classes r, g, b."""
    root = tmp_path_factory.mktemp("several")
    rows = []
    for i in range(96):
        classes = [c for c in range(3) if (i % 8) >> c & 1]
        picture(classes, i).save(root / f"{i:02d}.png")
        labels = ["rgb"[c] for c in classes]
        rows.append({"path": f"{i:02d}.png", "labels": labels, "split": "test" if i % 4 == 3 else "train"})
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "list.jsonl"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    recipe = tiny(data, epochs=12, batch_size=24, **{"model.dropout": 0.0, "model.stochastic_depth": 0.0})
    return fit(recipe, out=tmp_path_factory.mktemp("runs") / "several", callbacks=[])


def test_the_usual_recipe_asks_for_each_class_apart_and_cross_entropy_is_refused(data, refused):
    recipe = tiny(data)
    assert recipe.loss.name == "bce"
    with pytest.raises(ConfigError, match="loss.name is ce, which is for images of one class"):
        fit(recipe.replace({"loss.name": "ce"}), callbacks=[])
    assert "loss.name is ce" in refused("train", "--data", data, "--loss.name", "ce")


def test_answers_for_one_class_and_for_several_are_told_apart(run, data, command, refused, image_folder, tmp_path):
    folder = image_folder(side=16)
    assert "answers for images of several classes, but those of" in refused("evaluate", run.path, "--data", folder)
    single = residuum.load(run.path)
    single.several_classes = False
    residuum.save(single, tmp_path / "single.safetensors")
    result = command("evaluate", tmp_path / "single.safetensors", "--data", data, "--out", tmp_path / "out")
    assert result.code == 0
    assert "here each class is taken by itself, by the sigmoid" in " ".join(result.out.split())


@pytest.mark.slow
def test_training_learns_which_classes_there_are(run, data, command, tmp_path):
    result = command("evaluate", run.path, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "mean average precision" in result.out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["mean_average_precision"] > 0.9
    assert found["exact"]["of"] == 24
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 24
    labels = np.array([[name in row["labels"].split("|") for name in "rgb"] for row in rows])
    scores = np.array([[float(row[name]) for name in "rgb"] for row in rows])
    there = metrics.average_precision_score(labels, scores)
    assert found["mean_average_precision"] == pytest.approx(there, abs=1e-4)


def test_two_networks_are_compared_by_images_of_which_every_class_is_right(run, command):
    result = command("evaluate", run.path, "--against", run.path)
    assert result.code == 0, result.err
    assert "not resolved" in result.out


def test_predictions_are_the_classes_above_a_threshold(run, command, refused, finished, tmp_path):
    picture([0, 2], 1).save(tmp_path / "both.png")
    picture([], 2).save(tmp_path / "none.png")
    model = residuum.load(run.path)
    assert model.several_classes
    found = list(predict(model, [tmp_path / "both.png", tmp_path / "none.png"], threshold=0.0))
    assert [len(one.classes) for one in found] == [3, 3]
    assert {name for name, _ in found[0].classes[:2]} == {"r", "b"}
    loud = command("predict", run.path, tmp_path / "both.png", "--threshold", 1.0)
    assert (loud.code, loud.out) == (0, "")
    assert "threshold is for networks of several classes" in refused(
        "predict", finished.path, tmp_path / "both.png", "--threshold", 0.5
    )


@pytest.mark.slow
def test_a_saved_network_remembers_that_its_classes_may_come_together(run, tmp_path):
    model = residuum.load(run.path)
    residuum.save(model, tmp_path / "net.safetensors")
    assert residuum.load(tmp_path / "net.safetensors").several_classes
    assert torch.equal(residuum.load(tmp_path / "net.safetensors").fc.weight, model.fc.weight)
    residuum.convert(run.path, tmp_path / "other.safetensors", "residuum")
    assert residuum.load(tmp_path / "other.safetensors").several_classes
