"""`residuum predict`: lines for people and for programs, whatever is in names."""

import io
import os
import shutil

import numpy as np
import pytest
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
    assert "none.png" in refused("predict", weights, "none.png")
    assert "bad.png" in refused("predict", weights, "bad.png")
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
