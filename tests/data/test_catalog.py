"""One scan of a dataset: splits under any usual name, held-out images, what is left out, and what is refused."""

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from residuum.data import listing
from residuum.data.catalog import NAMED, USUAL_SIZE, held_out, scan, split_files
from residuum.errors import DataError


def python_prints(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def names(found, split):
    return [path.removeprefix(found.name + "/") for path, _ in found.files[split]]


def fill(root, *folders, size=(16, 16), count=2, ending="png"):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (i, 0, 0)).save(root / folder / f"{i}.{ending}")
    return root


def test_a_folder_says_its_classes_and_the_files_of_each_split(image_folder):
    found = scan(image_folder(side=16, train=3, test=2))
    assert found.classes == ("blue", "green", "red")
    assert [label for _, label in found.files["train"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(found.files["test"]) == 6
    assert set(found.files) == {"train", "test"}
    assert found.channels == 3


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAINING"])
@pytest.mark.parametrize(
    ("other", "split"), [("val", "val"), ("valid", "val"), ("Validation", "val"), ("Testing", "test")]
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, other, split):
    fill(tmp_path, f"{train}/a", f"{train}/b", f"{other}/a", f"{other}/b")
    assert set(scan(tmp_path).files) == {"train", split}


def test_three_splits_are_three(tmp_path):
    fill(tmp_path, *(f"{split}/{name}" for split in ("train", "val", "test") for name in "ab"))
    splits = split_files(scan(tmp_path), 0.5)
    assert {name: len(files) for name, files in splits.items()} == {"train": 4, "val": 4, "test": 4}


def test_validation_is_held_out_of_train_where_there_is_none_and_test_is_left_alone(image_folder):
    found = scan(image_folder(train=20))
    splits = split_files(found, 0.1)
    assert splits["test"] == found.files["test"]
    assert sorted(splits["train"] + splits["val"]) == sorted(found.files["train"])
    assert not set(splits["train"]) & set(splits["val"])
    assert {label for _, label in splits["val"]} == {0, 1, 2}
    assert "val" not in split_files(found, 0)


def test_class_folders_without_splits_are_a_dataset(tmp_path):
    found = scan(fill(tmp_path, "a", "b", count=20))
    assert found.classes == ("a", "b")
    assert {name: len(files) for name, files in split_files(found, 0.1).items()}.keys() == {"train", "val"}


def test_a_class_may_be_called_train(tmp_path):
    assert scan(fill(tmp_path, "apple", "train", "tulip")).classes == ("apple", "train", "tulip")


def test_what_is_held_out_depends_on_names_below_the_folder_alone(tmp_path):
    one = scan(fill(tmp_path / "one", "train/a", "train/b", count=40))
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    two = scan(tmp_path / "elsewhere" / "two")

    def val(found):
        return [path.removeprefix(found.name) for path, _ in split_files(found, 0.2)["val"]]

    assert val(one) == val(two)
    assert one.digest == two.digest
    code = f"from residuum.data.catalog import scan, split_files; print(split_files(scan({one.name!r}), 0.2)['val'])"
    assert python_prints(code).strip() == str(split_files(one, 0.2)["val"])
    (tmp_path / "one" / "train" / "a" / "7.png").unlink()  # the others stay where they were
    assert val(scan(tmp_path / "one")) == [name for name in val(one) if name != "/train/a/7.png"]


def test_about_the_share_asked_for_is_held_out():
    keys = [str(i) for i in range(10_000)]
    assert 900 < sum(held_out(keys, [i % 10 for i in range(10_000)], 0.1)) < 1100


@pytest.mark.parametrize("count", range(1, 12))
def test_classes_of_few_images_keep_one_to_train_with_and_give_one_where_their_share_is_one(count):
    for salt in range(50):
        keys = [f"{salt}/{label}/{i}" for label in range(2) for i in range(count)]
        chosen = held_out(keys, [0] * count + [1] * count, 0.1)
        for members in (chosen[:count], chosen[count:]):
            assert not all(members)
            assert any(members) or count < 5
        assert any(chosen) or count == 1


def test_small_images_of_one_size_are_held_in_memory_whatever_their_shape(tmp_path):
    found = scan(fill(tmp_path, "a", "b", size=(32, 48)))
    assert found.image_size == (48, 32)
    assert found.in_memory


def test_large_images_and_those_of_several_sizes_stay_files(tmp_path):
    for root in (fill(tmp_path / "large", "a", "b", size=(80, 80)), fill(tmp_path / "mixed", "a", "b")):
        if root.name == "mixed":
            fill(root, "b", size=(20, 16))
        found = scan(root)
        assert found.image_size == USUAL_SIZE
        assert not found.in_memory


def test_small_images_that_memory_cannot_hold_stay_files(image_folder, monkeypatch):
    monkeypatch.setattr(listing, "MEMORY_LIMIT", 1000)
    found = scan(image_folder(side=16))
    assert found.image_size == (16, 16)
    assert not found.in_memory


def test_images_of_any_still_format_count_and_the_rest_is_counted(tmp_path):
    root = fill(tmp_path / "data", "train/a", "train/b", count=1)
    image = Image.new("RGB", (8, 8))
    for ending in ("bmp", "tif", "TIFF", "webp", "gif", "ppm", "avif"):
        image.save(root / "train" / "a" / f"x.{ending}")
    image.save(root / "train" / "a" / "x.jfif", format="JPEG")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / "a" / "x.heic").write_text("not read")
    (root / "train" / "a" / ".hidden.png").write_text("no image")
    (root / "train" / "a" / ".ipynb_checkpoints").mkdir()
    image.save(root / "train" / "a" / ".ipynb_checkpoints" / "0-checkpoint.png")
    image.save(root / "train" / "loose.png")
    (root / "annotations").mkdir()
    found = scan(root)
    endings = ("avif", "bmp", "gif", "jfif", "ppm", "tif", "TIFF", "webp")
    assert sorted(names(found, "train")) == sorted(
        ["train/a/0.png", "train/b/0.png", *(f"train/a/x.{e}" for e in endings)]
    )
    assert found.left_out == {
        "files that end in '.txt'": 1,
        "files that end in '.heic'": 1,
        "hidden files": 1,
        "hidden folders": 1,
        "images outside class folders": 1,
        "other folders beside the splits": 1,
    }


def test_nothing_is_left_out_of_a_plain_folder(image_folder):
    assert scan(image_folder()).left_out == {}


def test_links_are_followed_once_and_circles_end(tmp_path):
    root = fill(tmp_path / "data", "a", "b", count=1)
    fill(tmp_path, "elsewhere", count=1)
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root / "a")
    (root / "a" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (root / "a" / "self").symlink_to(root / "a" / "self")
    (root / "a" / "one.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    found = scan(root)
    assert found.classes == ("a", "b", "c")
    assert names(found, "train") == ["a/0.png", "a/again/0.png", "a/one.png", "b/0.png", "c/0.png"]
    assert found.left_out["links to folders read already"] == 2
    assert found.left_out["links, pipes or devices that are no files"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_never_opened(tmp_path):
    root = fill(tmp_path, "a", "b", count=1)
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "zero.png").symlink_to("/dev/zero")
    found = scan(root)
    assert len(found.files["train"]) == 2
    assert found.left_out == {"links, pipes or devices that are no files": 2}


def test_a_changed_name_size_or_class_changes_the_digest(image_folder):
    root = image_folder()
    seen = {scan(root).digest}
    changes = (
        lambda: (root / "train" / "red" / "0.png").rename(root / "train" / "red" / "z.png"),
        lambda: (root / "train" / "red" / "1.png").write_bytes(b"longer or shorter"),
        (root / "test" / "blue" / "1.png").unlink,
        lambda: [(root / split / "red").rename(root / split / "a red") for split in ("train", "test")],
    )
    for change in changes:
        change()
        seen.add(scan(root).digest)
    assert len(seen) == 1 + len(changes)


def test_names_that_are_no_utf8_are_only_names(tmp_path):
    root = fill(tmp_path, "a", "b", count=1)
    strange = os.fsencode(root) + b"/a/caf\xe9.png"
    try:
        shutil.copy(os.fsencode(root / "a" / "0.png"), strange)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    found = scan(root)
    assert os.fsdecode(strange) in dict(found.files["train"])
    assert split_files(found, 0.5)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "neither a dataset"),
        (lambda root: shutil.rmtree(root / "train"), "has 'test' but no 'train' folder"),
        (lambda root: shutil.copytree(root / "test", root / "testing"), "'test' and 'testing', which both mean test"),
        (lambda root: (root / "train" / "red").rename(root / "train" / "pink"), "has classes that .* has not: 'red'"),
        (lambda root: (root / "train" / "pink").mkdir(), "pink' holds no image; add some"),
        (
            lambda root: [p.rename(p.with_suffix(".heic")) for p in (root / "train" / "red").iterdir()],
            r"but files that end in '\.heic' \(8\); add some",
        ),
        (lambda root: [p.unlink() for p in (root / "test").glob("*/*")], "test' holds no image in any class"),
        (lambda root: [shutil.rmtree(p) for p in root.glob("*/[rb]*")], "1 class folder; "),
        (
            lambda root: [p.rename(root / "train" / f"{p.parent.name}{p.name}") for p in root.glob("train/*/*")]
            and [p.rmdir() for p in (root / "train").iterdir() if p.is_dir()],
            "0 class folders and 24 images outside of them",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused(image_folder, damage, says):
    root = image_folder()
    damage(root)
    with pytest.raises(DataError, match=says):
        scan(root)


def test_validation_may_lack_a_class(image_folder):
    root = image_folder(test_name="val")
    shutil.rmtree(root / "val" / "red")
    assert {label for _, label in scan(root).files["val"]} == {0, 1}


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody_here/x", "a\0b", "", "\x1b[31m", "/dev/null/x"])
def test_paths_that_cannot_be_are_refused_in_a_short_sentence(path):
    with pytest.raises(DataError, match="neither a dataset") as refusal:
        scan(path)
    assert len(str(refusal.value)) <= 500
    assert str(refusal.value).isprintable()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "data.zip").write_text("")
    with pytest.raises(DataError, match="is a file"):
        scan(tmp_path / "data.zip")


def test_a_misspelled_dataset_gets_the_nearest_name():
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        scan("cifar-10")


def test_named_datasets_are_known_before_a_file_is_read():
    assert scan("cifar100").classes[:3] == ("apple", "aquarium_fish", "baby")
    assert len(scan("cifar100").classes) == 100
    assert {name: found.image_size for name, found in NAMED.items()} == {
        "digits": (8, 8),
        "cifar10": (32, 32),
        "cifar100": (32, 32),
        "fashion-mnist": (28, 28),
    }


def test_a_scan_needs_no_torch(image_folder):
    root = str(image_folder(train=1, test=1))
    code = f"import sys; from residuum.data.catalog import scan; scan({root!r}); print('torch' in sys.modules)"
    assert python_prints(code).strip() == "False"
