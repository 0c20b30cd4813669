"""Image folders that cannot be used are refused before an image is read."""

import shutil

import pytest

from residuum.data.catalog import Folder, facts
from residuum.errors import DataError


def test_a_folder_says_its_classes_files_and_image_size(image_folder):
    about = facts(str(image_folder(side=16, train=3, test=2)))
    assert isinstance(about, Folder)
    assert about.classes == ("blue", "green", "red")
    assert [label for _, label in about.train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(about.test) == 6
    assert about.side == 16


def test_val_serves_for_test(image_folder):
    assert len(facts(str(image_folder(test_name="val"))).test) == 12


def test_other_files_and_hidden_ones_are_not_images(image_folder):
    root = image_folder()
    (root / "train" / "red" / "notes.txt").write_text("no image")
    (root / "train" / "red" / ".hidden.png").write_text("no image")
    (root / "train" / ".cache").mkdir()
    assert len(facts(str(root)).train) == 24


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "neither a dataset"),
        (lambda root: shutil.rmtree(root / "train"), "no train/"),
        (lambda root: shutil.rmtree(root / "test"), "no train/ and test/"),
        (lambda root: shutil.rmtree(root / "test" / "red"), "differ: red"),
        (lambda root: (root / "train" / "pink").mkdir(), "differ: pink"),
        (lambda root: [(root / "train" / "red" / f"{i}.png").unlink() for i in range(8)], "red holds no image"),
        (
            lambda root: [shutil.rmtree(root / p / c) for p in ("train", "test") for c in ("red", "blue")],
            "at least two",
        ),
        (
            lambda root: [shutil.rmtree(root / p / c) for p in ("train", "test") for c in ("red", "blue", "green")],
            "two",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(image_folder, damage, says):
    root = image_folder()
    damage(root)
    with pytest.raises(DataError, match=says):
        facts(str(root))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "data.zip").write_text("")
    with pytest.raises(DataError, match="is a file"):
        facts(str(tmp_path / "data.zip"))


def test_a_misspelled_dataset_gets_the_nearest_name():
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        facts("cifar-10")
