"""`residuum predict`: lines for people and for programs, whatever is in names."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import residuum.inference.predict
from residuum.cli import predict as command_predict
from residuum.inference.predict import Prediction

HOSTILE = ["IMG [edited].jpg", "x[/y].jpg", "[bold]b[/bold].png", "фото.png", "a\nb.png", os.fsdecode(b"caf\xe9.png")]


def shown(monkeypatch, predictions, encoding="utf-8", terminal=False):
    monkeypatch.setattr(residuum.inference.predict, "predict", lambda *args, **kwargs: iter(predictions))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    asked = command_predict.Predict("run", ("x",))
    console = Console(file=stream, width=40, force_terminal=terminal, color_system=None)
    assert command_predict.run(asked, console) == 0
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_names_show_as_they_are_on_any_console(monkeypatch, encoding, terminal):
    out = shown(monkeypatch, [Prediction(name, ((name, 0.5),)) for name in HOSTILE], encoding, terminal)
    for part in ("IMG [edited].jpg", "x[/y].jpg", "[bold]b[/bold].png", r"a\nb.png", r"caf\xe9.png"):
        assert out.count(part) == 2
    foreign = "фото.png" if encoding == "utf-8" else r"\u0444\u043e\u0442\u043e.png"
    assert out.count(foreign) == 2
    assert len(out.splitlines()) == len(HOSTILE) * (2 if terminal else 1)


def test_in_a_pipe_each_class_is_a_line_of_three_fields(monkeypatch):
    out = shown(monkeypatch, [Prediction("a b.png", (("cat", 0.81237), ("dog", 0.1)))])
    assert out == "a b.png\tcat\t0.8124\na b.png\tdog\t0.1000\n"


def test_on_a_terminal_the_image_heads_its_classes(monkeypatch):
    out = shown(monkeypatch, [Prediction("a.png", (("cat", 0.8123), ("dog", 0.1)))], terminal=True)
    assert out.split() == ["a.png", "81.2", "%", "cat", "10.0", "%", "dog"]


def test_each_prediction_is_written_before_the_next_is_asked_for(monkeypatch):
    written = io.StringIO()

    def predictions():
        yield Prediction("first", (("cat", 0.5),))
        assert "first" in written.getvalue()
        yield Prediction("second", (("cat", 0.5),))

    monkeypatch.setattr(residuum.inference.predict, "predict", lambda *args, **kwargs: predictions())
    command_predict.run(command_predict.Predict("run", ("x",)), Console(file=written))
    assert "second" in written.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from residuum import Preprocessing, create, save

    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    preprocessing = Preprocessing(3, (16, 16), (0.5,) * 3, (0.25,) * 3, 0.0)
    model = create("resnet18", width=0.125, num_classes=2)
    save(model, path, classes=("[red]", "green"), preprocessing=preprocessing)
    return path


def test_predicting_by_the_command(command, refused, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save("IMG [edited].png")
    out = command("predict", weights, "IMG [edited].png", "IMG [edited].png", "--top", 1).out
    assert len(out.splitlines()) == 2
    assert out.startswith(("IMG [edited].png\t[red]\t", "IMG [edited].png\tgreen\t"))
    (tmp_path / "bad.png").write_bytes(b"junk")
    for name in ("none.png", "bad.png"):
        assert name in refused("predict", weights, name, "--bad-images", "stop")
    assert "residuum predict needs IMAGES" in refused("predict", weights)
    assert "--top" in refused("predict", weights, "bad.png", "--top", 0)


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are Unicode there")
def test_a_file_name_that_is_no_text_is_read_and_shown(command, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save("plain.png")
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy("plain.png", name)
    result = command("predict", weights, name)
    assert result.code == 0, result
    assert r"caf\xe9.png" in result.out


NAMES = ["a,b.png", 'say "x".png', "two\nlines.png", "фото.png", "=1+1.png"]


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Five images with names that formats trip over, in a folder of a folder, and two that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((8, 9 + i, 3), 40 * i, np.uint8)).save(f"in/deep/{name}")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"junk")
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "notes.txt").touch()
    return ["in/bad.jpg", *sorted(f"in/deep/{name}" for name in NAMES), "in/empty.png"]


def test_a_folder_is_gone_through_past_bad_images_which_are_told_apart_from_the_data(command, weights, photographs):
    result = command("predict", weights, "in", "--top", 1, "--format", "jsonl")
    assert result.code == 1
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["image"] for row in rows] == photographs
    assert [bool(row["classes"]) for row in rows] == [False, *[True] * 5, False]
    assert "bad.jpg" in rows[0]["error"]
    told = result.err.splitlines()
    assert len(told) == 3
    assert "bad.jpg" in told[0]
    assert "empty.png" in told[1]
    assert told[2] == "2 of 7 images could not be read"


def test_csv_and_json_give_every_name_back(command, weights, photographs):
    result = command("predict", weights, "in", "--format", "csv", "--top", 2)
    rows = list(csv.DictReader(io.StringIO(result.out, newline="")))
    assert [row["image"] for row in rows if row["error"]] == [photographs[0], photographs[-1]]
    good = [row for row in rows if not row["error"]]
    assert [row["image"] for row in good] == [name for name in photographs[1:-1] for _ in range(2)]
    assert {row["class"] for row in good} == {"[red]", "green"}
    document = json.loads(command("predict", weights, "in", "--format", "json").out)
    assert [row["image"] for row in document] == photographs
    for row, (first, second) in zip(document[1:-1], zip(good[::2], good[1::2], strict=True), strict=True):
        said = [row["classes"][i]["probability"] for i in (0, 1)]
        assert said == [float(first["probability"]), float(second["probability"])]


def test_a_file_gets_the_format_of_its_ending_and_is_whole_or_not_there(command, refused, weights, photographs):
    assert command("predict", weights, "in", "--out", "x.json").out == ""
    assert len(json.loads(Path("x.json").read_text(encoding="utf-8"))) == len(photographs)
    assert "bad.jpg" in refused("predict", weights, "in", "--out", "y.csv", "--bad-images", "stop")
    assert sorted(path.name for path in Path().iterdir()) == ["in", "x.json"]


def test_a_document_that_is_broken_off_is_still_one(command, weights, photographs):
    result = command("predict", weights, *photographs[1:], "--format", "json", "--bad-images", "stop")
    assert result.code == 2
    assert [row["image"] for row in json.loads(result.out)] == photographs[1:-1]


def test_folders_and_patterns_without_an_image_are_refused(refused, weights, photographs, tmp_path):
    (tmp_path / "none").mkdir()
    assert "the folder 'none' has no image file in it" in refused("predict", weights, "none")
    assert "no image file matches 'in/*.gif'" in refused("predict", weights, "in/*.gif")
    assert "features go into a file that ends in .npz, .npy or .csv" in refused(
        "predict", weights, "in", "--features", "x"
    )
    assert "integer of at least 1" in refused("predict", weights, "in", "--workers", 0)


def test_features_are_what_the_classifier_gets_beside_the_names(command, weights, photographs, tmp_path):
    from residuum import load

    assert command("predict", weights, "in/deep/*.png", "--features", "f.npz", "--precision", "fp32").code == 0
    assert command("predict", weights, "in", "--features", "f.csv", "--precision", "fp32").code == 1
    with np.load("f.npz") as arrays:
        names, features = arrays["images"].tolist(), arrays["features"]
    assert names == photographs[1:-1]
    with Path("f.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == names
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], np.float32), features)
    model = load(weights)
    best = [prediction.classes[0] for prediction in residuum.inference.predict.predict(weights, names)]
    shares = torch.from_numpy(features) @ model.fc.weight.T + model.fc.bias
    assert [model.classes[i] for i in shares.argmax(1)] == [name for name, _ in best]


def test_features_without_names_are_of_every_image_or_of_none(command, refused, weights, photographs):
    assert command("predict", weights, "in/deep/*.png", "--features", "f.npz").code == 0
    assert command("predict", weights, "in/deep/*.png", "--features", "f.npy").code == 0
    with np.load("f.npz") as named:
        assert np.array_equal(np.load("f.npy"), named["features"])
    assert "a .npy file has no names to say which rows are left" in refused(
        "predict", weights, "in", "--features", "g.npy"
    )
    assert not Path("g.npy").exists()


@pytest.mark.parametrize(
    "words", [("--top", 2), ("--threshold", 0.3), ("--mirrored",), ("--format", "json"), ("--runtime", "onnxruntime"),
              ("--engine", "inductor")],
)  # fmt: skip
def test_what_features_do_not_heed_is_refused(refused, weights, photographs, words):
    said = refused("predict", weights, "in", "--features", "f.npz", *words)
    assert f"leave out {words[0]}" in said
    assert not Path("f.npz").exists()


@pytest.mark.parametrize("name", ["f.csv", "f.npz"])
def test_without_an_image_that_can_be_read_there_is_no_file_of_features(refused, weights, photographs, name):
    assert "no image could be read" in refused("predict", weights, "in/bad.jpg", "--features", name)
    assert not Path(name).exists()


@pytest.mark.parametrize("words", [(), ("--features", "f.npz")])
def test_a_network_of_other_channels_than_images_have_is_refused_once(refused, photographs, words):
    from residuum import Preprocessing, create, save

    preprocessing = Preprocessing(5, (16, 16), (0.5,) * 5, (0.25,) * 5, 0.0)
    model = create("resnet18", width=0.125, num_classes=2, in_channels=5)
    save(model, "five.safetensors", classes=("red", "green"), preprocessing=preprocessing)
    said = refused("predict", "five.safetensors", "in", *words)
    assert "'five.safetensors' looks at 5 channels, and image files give 1 (grey) or 3 (RGB)" in said
    assert "bad.jpg" not in said


@pytest.mark.slow
def test_a_list_is_answered_line_by_line_and_a_reader_who_leaves_ends_it_quietly(weights, photographs):
    start = [sys.executable, "-m", "residuum", "predict", str(weights), "-", "--top", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(start, bufsize=0, **pipes) as process:
        for name in ("in/deep/a,b.png", "in/deep/фото.png"):
            process.stdin.write(os.fsencode(name) + b"\n")  # and the list does not end
            assert process.stdout.readline().startswith(os.fsencode(name) + b"\t")
        process.stdout.close()
        process.stdin.write(b"in/deep/a,b.png\n" * 3)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
