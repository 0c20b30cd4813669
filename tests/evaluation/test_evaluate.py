"""From files to figures: each image once whichever process looks at it, whoever's network, and what is written."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.kinds import as_kind

import residuum
from residuum.data.catalog import scan
from residuum.data.preparing import evaluation_transform, normalise
from residuum.data.settings import DataSettings
from residuum.data.sources import Split, read_image
from residuum.errors import DataError
from residuum.evaluation.command import Request, data_settings
from residuum.evaluation.counts import count
from residuum.evaluation.evaluate import How, Subject, evaluate, relabelled
from residuum.evaluation.predictions import _mean_of_each, _mean_of_shares, joined, look
from residuum.inference.answering import answering
from residuum.preprocessing import Preprocessing
from residuum.train import Recipe, fit

CLASSES = ("blue", "green", "red")
NET = {"depths": (1, 1), "widths": (8, 8), "stem": "conv3", "stem_pool": "none", "stem_width": 8, "block": "basic"}


@pytest.fixture(scope="module")
def network():
    """An untrained network of three classes that knows its preprocessing."""
    torch.manual_seed(1)
    model = residuum.ResNet(residuum.ResNetConfig(**NET, num_classes=3, zero_init_residual=False)).eval()
    model.classes = CLASSES
    model.preprocessing = Preprocessing(3, (16, 16), (0.4,) * 3, (0.3,) * 3, 0.0)
    return model


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """The same as a file."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    residuum.save(network, path)
    return path


def answers(network):
    return answering(network, device="cpu", precision="fp32")


def painted(count, seed=0):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))
    return Split(images, torch.from_numpy(random.integers(0, 3, count)))


@pytest.mark.parametrize("world", [2, 3])
def test_a_hundred_and_one_images_count_the_same_on_any_number_of_processes(network, world):
    split = painted(101)

    def over(processes):
        shards = [look(answers(network), split, batch_size=7, rank=r, world=processes) for r in range(processes)]
        found = joined(shards, split, CLASSES, source="net", data="made up", about="")
        return found, count(CLASSES, found.labels, found.probabilities, found.losses)

    (one, alone), (many, together) = over(1), over(world)
    assert one.images == many.images == tuple(map(str, range(101)))
    assert np.array_equal(alone.confusion, together.confusion)
    assert alone.accuracy == together.accuracy
    assert alone.top == together.top
    assert alone.confusion.sum() == 101
    assert np.allclose(one.probabilities, many.probabilities, rtol=0, atol=1e-6)


def test_the_figures_are_those_of_the_plain_network(network):
    split = painted(40)
    found = joined(
        [look(answers(network), split, batch_size=16)],
        split, CLASSES, source="net", data="made up", about="",
    )  # fmt: skip
    pixels = split.images.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = network((pixels - 0.4 * 255) / (0.3 * 255)).double()
    assert np.allclose(found.probabilities, logits.softmax(1).numpy(), atol=1e-5)
    assert found.losses.mean() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, split.labels).item(), abs=1e-5
    )
    assert found.right.mean() == (logits.argmax(1) == split.labels).double().mean()


def test_a_mirrored_view_takes_the_mean_of_both_probabilities(network):
    split = painted(8)
    shards = [
        look(answers(network), split, batch_size=8, mirrored=True),
        look(answers(network), split, batch_size=8),
        look(answers(network), Split(split.images.flip(2), split.labels), batch_size=8),
    ]
    both, plain, mirror = (torch.from_numpy(s.logits).softmax(1) for s in shards)
    assert torch.allclose(both, (plain + mirror) / 2, atol=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_a_mirrored_view_of_answers_that_are_sure_is_finite(several):
    one, other = torch.tensor([[800.0, -800.0, 3.0]]).double(), torch.tensor([[900.0, -20.0, -800.0]]).double()
    if several:
        assert torch.equal(_mean_of_each(one, other).isfinite(), torch.ones(1, 3, dtype=torch.bool))
        small = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[-0.5, 3.0]]).double()
        torch.testing.assert_close(_mean_of_each(*small).sigmoid(), (small[0].sigmoid() + small[1].sigmoid()) / 2)
    else:
        assert _mean_of_shares(one, other).isfinite().all()
        small = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[-0.5, 3.0]]).double()
        torch.testing.assert_close(_mean_of_shares(*small).softmax(1), (small[0].softmax(1) + small[1].softmax(1)) / 2)


def test_a_runs_own_data_is_split_as_it_was_however_it_is_named(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = image_folder(side=16, train=20, test=0, test_name="train2").rename(tmp_path / "pets")
    shutil.rmtree(root / "train2")
    fields = {"epochs": 1, "batch_size": 8, "model.width": 0.0625, "data.holdout": 0.3}
    run = fit(Recipe.default("pets").replace(fields), out=tmp_path / "run", callbacks=[]).path
    request = Request(str(run), None, None, None, None, False, None)
    own = data_settings(request, None)
    assert own.holdout == 0.3
    shutil.copytree(root, tmp_path / "copy")
    for name in ("pets", "./pets", str(root), "copy"):
        assert replace(data_settings(replace(request, data=name), scan(name)), path=own.path) == own
    shutil.copy(root / "train" / "red" / "0.png", tmp_path / "copy" / "train" / "red" / "new.png")
    assert data_settings(replace(request, data="copy"), scan("copy")).holdout == 0.0
    assert data_settings(replace(request, data="copy", holdout=0.2), scan("copy")).holdout == 0.2


def test_images_left_out_when_the_data_was_opened_are_said_too(command, image_folder, weights, tmp_path):
    root = image_folder(side=16)
    (root / "test" / "red" / "1.png").write_bytes(b"no image")
    (root / "train" / "red" / "1.png").write_bytes(b"no image")
    result = command("evaluate", weights, "--data", root, "--skip-bad-images", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    (said,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["skipped"]
    assert "test/red/1.png" in said
    assert "test/red/1.png" in result.out
    assert "train/red/1.png" not in result.out


@pytest.mark.parametrize("side", [16, 80])
def test_predictions_name_the_files_that_they_are_of(command, image_folder, weights, tmp_path, side):
    root = image_folder(side=side)
    assert command("evaluate", weights, "--data", root, "--out", tmp_path / "out").code == 0
    named = {line["image"]: line["label"] for line in csv.DictReader((tmp_path / "out" / "predictions.csv").open())}
    assert named == {str(file): file.parent.name for file in (root / "test").rglob("*.png")}


def test_images_of_other_sizes_than_the_first_are_read_in_their_own(command, image_folder, network, tmp_path):
    root = image_folder(side=8)
    for file in (root / "test").rglob("*.png"):
        Image.open(file).resize((60, 40)).save(file)
    residuum.save(network, tmp_path / "net.safetensors")
    evaluated = command(
        "evaluate", tmp_path / "net.safetensors", "--data", root, "--out", tmp_path / "out", "--precision", "fp32"
    )
    assert evaluated.code == 0, evaluated.err
    rows = {line["image"]: line for line in csv.DictReader((tmp_path / "out" / "predictions.csv").open())}
    for name, row in rows.items():
        image = read_image(str(root / name) if not name.startswith("/") else name, 3)
        with torch.no_grad():
            best = network(
                normalise(evaluation_transform(network.preprocessing)(image)[None], network.preprocessing)
            ).softmax(1)
        assert float(row["probability1"]) == pytest.approx(best.max().item(), abs=1e-4)


def test_labels_go_by_name_and_a_class_that_is_not_known_is_refused():
    split = painted(4)
    assert relabelled(Subject("test", ("red", "blue"), split), CLASSES).tolist() == [2, 0]
    with pytest.raises(DataError, match="'purple'"):
        relabelled(Subject("test", ("red", "purple"), split), CLASSES)
    with pytest.raises(DataError, match="knows no class 'a'"):
        relabelled(Subject("test", ("a", "b", "c"), split), CLASSES)


def test_wordnet_ids_are_imagenets_classes():
    pytest.importorskip("timm")
    names = tuple(map(str, range(1000)))
    assert relabelled(Subject("test", ("n01440764", "n15075141"), painted(2)), names).tolist() == [0, 999]


def test_a_folder_is_evaluated_with_the_weights_own_preprocessing(image_folder, weights, tmp_path):
    root = image_folder(side=48)
    found, subject, preprocessing = evaluate(weights, DataSettings(path=str(root)), How(batch_size=5), cache=tmp_path)
    assert subject.name == "test"
    assert len(found.labels) == 12
    assert preprocessing.image_size == (16, 16)
    assert "12 images of the test split at 16x16" in found.about


def test_the_folder_of_an_evaluation_says_what_the_terminal_says(command, image_folder, weights, tmp_path):
    root = image_folder(side=48)
    Image.new("RGB", (48, 48)).save(root / "test" / "red" / "=1+1.png")
    out = tmp_path / "figures"
    result = command("evaluate", weights, "--data", root, "--out", out, "--precision", "fp32")
    assert result.code == 0, result.err
    values = json.loads((out / "evaluation.json").read_text())
    assert values["top1"]["of"] == 13
    assert f"{values['top1']['hits']} of 13" in result.out
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert sum(row["label"] == row["class1"] for row in rows) == values["top1"]["hits"]
    assert len(rows) == 13
    confusion = list(csv.reader((out / "confusion.csv").open()))
    assert sum(int(n) for row in confusion[1:] for n in row[1:]) == 13
    for name in ("confusion.png", "worst.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300
    assert "<svg" in (out / "evaluation.html").read_text()


def test_two_networks_are_compared_image_by_image(command, image_folder, network, weights, tmp_path):
    root = image_folder(side=48)
    other = tmp_path / "other.safetensors"
    with torch.no_grad():
        network.fc.bias.add_(torch.tensor([9.0, 0.0, 0.0]))
        residuum.save(network, other)
        network.fc.bias.sub_(torch.tensor([9.0, 0.0, 0.0]))
    result = command("evaluate", weights, "--data", root, "--against", other)
    assert result.code == 0, result.err
    assert "McNemar" in result.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --data"),
        (("--data", "nowhere"), "neither a dataset"),
        (("--data", "digits"), "1 channel"),
        (("--data", "ROOT", "--split", "val"), "has no val split"),
        (("--data", "ROOT", "--batch-size", "0"), "batch_size is 0"),
        (("--data", "ROOT", "--out", "ROOT"), "exists already"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(refused, image_folder, weights, tmp_path, arguments, sentence):
    root = image_folder(side=48)
    line = [str(root) if a == "ROOT" else a for a in arguments]
    holdout = ["--holdout", "0"] if "val" in line else []
    assert sentence in refused("evaluate", weights, *line, *holdout)


def test_a_bad_image_is_named_or_left_out_and_said(command, refused, image_folder, weights, tmp_path):
    root = image_folder(side=80)
    (root / "test" / "red" / "0.png").write_bytes(b"no image")
    assert "0.png" in refused("evaluate", weights, "--data", root, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = command("evaluate", weights, "--data", root, "--skip-bad-images")
    assert result.code == 0, result.err
    assert "of 11" in result.out
    assert "left out" in result.out


@pytest.mark.slow
def test_processes_of_torchrun_give_one_report_with_the_same_counts(command, image_folder, weights, tmp_path):
    root = image_folder(side=48, test=7)
    alone, together = tmp_path / "alone", tmp_path / "together"
    line = ["evaluate", str(weights), "--data", str(root), "--precision", "fp32", "--out"]
    assert command(*line, alone).code == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "residuum"]
    run = subprocess.run([*launch, *line, str(together)], check=True, capture_output=True, text=True, timeout=120)
    assert run.stdout.count("top-1 accuracy") == 1
    one, two = (json.loads((folder / "evaluation.json").read_text()) for folder in (alone, together))
    assert one["confusion"] == two["confusion"]
    assert one["top1"] == two["top1"]


def test_weights_in_a_runs_folder_are_evaluated_on_its_data_and_lone_ones_ask_for_some(command, finished, tmp_path):
    folder, best = (command("evaluate", finished.path / name) for name in ("", "weights.safetensors"))
    assert folder.code == best.code == 0, best.err
    figures, same = ([line for line in found.out.splitlines() if "accuracy" in line] for found in (folder, best))
    assert figures == same
    assert len(figures) == 3
    shutil.copy(finished.path / "weights.safetensors", tmp_path / "lone.safetensors")
    lone = command("evaluate", tmp_path / "lone.safetensors")
    assert (lone.code, lone.out) == (2, "")
    assert "is no run, which would say its data; give --data" in lone.err
    missing = command("evaluate", tmp_path / "missing.safetensors")
    assert (missing.code, missing.out) == (2, "")
    assert "there is no weights file" in missing.err


@pytest.mark.slow
def test_a_tar_is_evaluated_as_the_folder_is(command, image_folder, weights, tmp_path):
    root = image_folder(side=80)
    rows = []
    for data, out in ((root, tmp_path / "one"), (as_kind(root, "images.tar", tmp_path), tmp_path / "other")):
        result = command("evaluate", weights, "--data", data, "--out", out)
        assert result.code == 0, result.err
        rows.append([line[1:] for line in csv.reader((out / "predictions.csv").open())])
        assert (out / "worst.png").stat().st_size > 1000
    assert rows[0] == rows[1]


def same_counts(command, weights, exported, root, tmp_path, *flags):
    """Evaluate a network and its export on the same images; what `--against` counts."""
    pytest.importorskip("scipy")
    for name, source, more in (("a", weights, ("--precision", "fp32")), ("b", exported, flags)):
        result = command("evaluate", source, "--data", root, "--out", tmp_path / name, *more)
        assert result.code == 0, result.err
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in "ab")
    assert one["confusion"] == two["confusion"]
    assert one["top1"] == two["top1"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["images_per_second"] > 0
    paired = command("evaluate", weights, "--data", root, "--against", exported).out
    assert "+0.00 points" in paired
    return two["about"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "normalized"])
def test_an_exported_program_is_evaluated_as_its_network_is(command, image_folder, network, weights, tmp_path, kind):
    from residuum.export import export

    export(network, tmp_path / "net.pt2", input=kind)
    about = same_counts(command, weights, tmp_path / "net.pt2", image_folder(side=24), tmp_path)
    assert "12 images of the test split at 16x16, in fp32 by torch." in about


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "library", "flags"), [
    (".onnx", "onnxruntime", ("--runtime", "onnxruntime")), (".xml", "openvino", ())
])  # fmt: skip
def test_a_file_for_another_runtime_is_evaluated_as_its_network_is(
    command, image_folder, network, weights, tmp_path, ending, library, flags
):
    pytest.importorskip(library)
    from residuum.export import export

    export(network, tmp_path / f"net{ending}", input="pixels", precision="fp32" if ending == ".xml" else "auto")
    same_counts(command, weights, tmp_path / f"net{ending}", image_folder(side=24), tmp_path, *flags)


@pytest.mark.slow
def test_what_an_exported_file_cannot_do_is_refused(refused, image_folder, network, weights, tmp_path):
    from residuum.export import export

    export(network, tmp_path / "net.pt2")
    asked = ("evaluate", tmp_path / "net.pt2", "--data", image_folder())
    assert "the precision of" in refused(*asked, "--precision", "bf16")
    assert "the image size of" in refused(*asked, "--image-size", "32")
    assert "onnxruntime does not run .pt2 files" in refused(*asked, "--runtime", "onnxruntime")
    assert "runs exported files" in refused("evaluate", weights, "--data", asked[3], "--runtime", "openvino")
    assert "gives logits alone" in refused("predict", tmp_path / "net.pt2", asked[3], "--features", tmp_path / "f.npz")
