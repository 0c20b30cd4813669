"""`residuum data check`: bad images, the same images twice, and what there is of sizes, modes and classes."""

import shutil

import numpy as np
import pytest
from PIL import Image
from tests.data.kinds import as_kind

from residuum.data.checking import as_json, check, size_range
from residuum.errors import DataError


def test_a_sound_dataset_has_nothing_wrong(image_folder):
    found = check(image_folder(train=4, test=2))
    assert not found.wrong
    assert not found.within
    assert found.counts == {"train": {"blue": 4, "green": 4, "red": 4}, "test": {"blue": 2, "green": 2, "red": 2}}
    assert found.modes == {"RGB": 18}
    assert size_range(found) == {"least": (16, 16), "median": (16, 16), "largest": (16, 16)}


@pytest.mark.parametrize("kind", ["folder", "images.tar", "list.csv", "images.packed"])
def test_the_same_pixels_are_found_whatever_holds_them(image_folder, tmp_path, kind):
    root = image_folder(train=4, test=2)
    image = Image.open(root / "train" / "blue" / "0.png")
    image.save(root / "test" / "blue" / "leak.bmp")  # other bytes, the same pixels
    Image.open(root / "train" / "blue" / "1.png").save(root / "train" / "red" / "other.tif")
    shutil.copy(root / "train" / "green" / "2.png", root / "train" / "green" / "twice.png")
    found = check(root if kind == "folder" else as_kind(root, kind, tmp_path))
    assert found.wrong
    assert found.between == (("train/blue/0.png", "test/blue/leak.bmp"),)
    assert found.contradicting == (("train/blue/1.png", "train/red/other.tif"),)
    assert found.within == (("train/green/2.png", "train/green/twice.png"),)


def test_images_that_are_in_one_split_twice_alone_are_said_but_not_wrong(image_folder):
    root = image_folder(train=4, test=2)
    shutil.copy(root / "train" / "green" / "2.png", root / "train" / "green" / "twice.png")
    found = check(root)
    assert found.within
    assert not found.wrong


def test_sizes_modes_and_bad_images_are_counted(image_folder):
    root = image_folder(train=4, test=2)
    Image.new("L", (5, 3)).save(root / "train" / "blue" / "grey.png")
    Image.new("CMYK", (300, 200)).save(root / "train" / "blue" / "print.jpg")
    (root / "train" / "red" / "bad.png").write_bytes(b"junk")
    found = check(root)
    assert found.wrong
    assert [why for why in found.bad if "bad.png' cannot be decoded" in why] == list(found.bad)
    assert found.modes == {"RGB": 18, "L": 1, "CMYK": 1}
    assert size_range(found)["least"] == (3, 5)
    assert size_range(found)["largest"] == (200, 300)
    assert as_json(found)["wrong"] is True


def test_images_of_several_classes_count_for_each(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,labels\n0.png,a|b\n1.png,b\n2.png,a|b\n")
    assert check(tmp_path / "list.csv").counts == {"train": {"a": 2, "b": 3}}


def test_a_named_dataset_is_no_path_to_check():
    with pytest.raises(DataError, match="digits is a named dataset"):
        check("digits")
