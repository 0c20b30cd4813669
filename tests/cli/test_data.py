"""`residuum data check` and `pack` on the command line."""

import json
import shutil

import pytest


def test_check_says_that_nothing_is_wrong_within_eighty_columns(command, image_folder):
    result = command("data", "check", image_folder(train=4, test=2))
    assert result.code == 0
    assert "nothing is wrong" in result.out
    assert "12 train, 6 test images, 3 classes" in result.out
    table = result.out.splitlines()[1:]
    assert max(map(len, table)) <= 80


def test_check_ends_with_one_where_a_test_image_is_in_train(command, image_folder):
    root = image_folder(train=4, test=2)
    shutil.copy(root / "train" / "blue" / "0.png", root / "test" / "blue" / "9.png")
    result = command("data", "check", root)
    assert result.code == 1
    assert "1 group of images with the very same pixels are in several splits" in result.out
    assert "train/blue/0.png  =  test/blue/9.png" in result.out
    result = command("data", "check", root, "--json")
    assert result.code == 1
    assert json.loads(result.out)["same_between_splits"] == [["train/blue/0.png", "test/blue/9.png"]]


@pytest.mark.slow
def test_pack_writes_what_train_reads(command, image_folder, tmp_path):
    root, out = image_folder(train=8, test=4), tmp_path / "colours.packed"
    result = command("data", "pack", root, "--out", out, "--size", 12)
    assert result.code == 0
    assert "36 images" in result.out
    trained = command("train", "--data", out, "--epochs", 1, "--out", tmp_path / "run", "--model.width", 0.25)
    assert trained.code == 0, trained.err
    assert "12x12" in trained.out


def test_the_group_says_what_is_in_it(command, refused):
    assert "check" in command("data", "--help").out
    assert refused("data") == "error: 'residuum data' is followed by check or pack"
    assert refused("data", "chek").endswith("did you mean 'check'?")
    assert "residuum data pack needs --out" in refused("data", "pack", "x")
    assert "neither a dataset" in refused("data", "check", "nowhere")


@pytest.mark.parametrize("name", ["check", "pack"])
def test_each_has_its_help(command, name):
    assert "dataset of any kind" in " ".join(command("data", name, "--help").out.split())
