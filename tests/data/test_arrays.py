"""Arrays of numpy: which are images and labels, as MedMNIST, Keras and others name them; nothing is unpickled."""

import numpy as np
import pytest
import torch

from residuum.data.catalog import scan
from residuum.data.settings import DataSettings
from residuum.data.sources import open_dataset
from residuum.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def opened(path, **settings):
    catalog = scan(path)
    return open_dataset(catalog, DataSettings(path=str(path), **settings), channels=catalog.channels, cache=None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (12, 10, 3)])
def test_medmnist_has_splits_before_its_keys(tmp_path, save, shape):
    parts = {f"{split}_images": pixels(9, *shape, seed=i) for i, split in enumerate(("train", "val", "test"))}
    save(tmp_path / "a.npz", **parts, **{f"{s}_labels": np.arange(9)[:, None] % 3 for s in ("train", "val", "test")})
    found = opened(tmp_path / "a.npz")
    assert found.classes == ("0", "1", "2")
    order = np.argsort(np.arange(9) % 3, kind="stable")
    for split in ("train", "val", "test"):
        part = getattr(found, split)
        assert torch.equal(part.labels, torch.arange(9)[order] % 3)
        assert np.array_equal(part.images.numpy(), parts[f"{split}_images"][order].reshape(9, 12, 10, -1))


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("data", "target", None, None),
    ],
)
def test_other_names_are_found_by_shape_and_type(tmp_path, keys):
    values = (pixels(8, 9, 9), np.arange(8) % 2, pixels(4, 9, 9), np.arange(4) % 2)
    np.savez(
        tmp_path / "a.npz", **{k: v for k, v in zip(keys, values, strict=True) if k}, classes=np.array(["no", "yes"])
    )
    found = scan(tmp_path / "a.npz")
    assert found.classes == ("no", "yes")
    assert {split: len(files) for split, files in found.files.items()} == (
        {"train": 8} | ({"test": 4} if keys[2] else {})
    )


def test_zeros_and_ones_say_which_of_several_classes_an_image_is_of(tmp_path):
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    np.savez(tmp_path / "a.npz", images=pixels(3, 8, 8), labels=labels)
    found = opened(tmp_path / "a.npz", holdout=0.0)
    assert found.train.labels.tolist() == labels.tolist()


def test_larger_images_stay_on_disk_and_a_compressed_file_is_unpacked_once(tmp_path, cache):
    images = pixels(6, 80, 70, 3)
    for save, name in ((np.savez, "a.npz"), (np.savez_compressed, "b.npz")):
        save(tmp_path / name, images=images, labels=np.arange(6) % 2)
        found = opened(tmp_path / name, holdout=0.0)
        assert [place.shape for place in found.train.images] == [(80, 70, 3)] * 6
    unpacked = list((cache / "arrays").iterdir())
    assert len(unpacked) == 1
    before = unpacked[0].stat().st_mtime_ns
    scan(tmp_path / "b.npz")
    assert unpacked[0].stat().st_mtime_ns == before


def test_other_pixels_are_another_digest(tmp_path):
    seen = set()
    for seed in (0, 1):
        np.savez(tmp_path / "a.npz", images=pixels(8, 9, 9, seed=seed), labels=np.arange(8) % 2)
        seen.add(scan(tmp_path / "a.npz").digest)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "it holds no array"),
        ({"images": np.zeros((8, 9, 9)), "labels": np.arange(8)}, r"say .* 'images' float64 \(8, 9, 9\), 'labels'"),
        ({"images": pixels(8, 3, 9, 9), "labels": np.arange(8)}, r"does not say .*uint8 \(8, 3, 9, 9\)"),
        ({"images": pixels(8, 9, 9), "labels": np.arange(7)}, "does not say which arrays are the images"),
        ({"images": pixels(8, 9, 9), "a": np.arange(8), "b": np.arange(8)}, "does not say which arrays are the images"),
        ({"images": pixels(8, 9, 9), "labels": np.arange(8) - 1}, "are no number of a class"),
        ({"images": pixels(8, 9, 9), "labels": np.arange(8)[:, None] + np.zeros((1, 3), int)}, "are not all 0 or 1"),
        ({"images": pixels(8, 9, 9), "labels": np.zeros(8, int)}, "has 1 class to train with"),
        ({"images": pixels(8, 9, 9), "labels": np.arange(8), "classes": np.array(["a"])}, "are no number of a class"),
        ({"images": pixels(8, 9, 9), "labels": np.arange(8), "x": np.array([{}], object)}, "x holds objects of Python"),
        ({"images": pixels(6, 9, 9), "labels": np.arange(6) % 3, "classes": np.array([*"aab"])}, "the class 'a' twice"),
        ({"train_images": pixels(4, 9, 9), "train_labels": np.eye(4, 3, dtype=int), "test_images": pixels(3, 9, 9),
          "test_labels": np.arange(3)}, r"labels \(N,\) in one split and \(N, classes\) in another, train and test"),
        ({"images": np.asfortranarray(pixels(8, 9, 9)), "labels": np.arange(8)}, "images is stored column by column"),
    ],
)  # fmt: skip
def test_arrays_that_are_not_clear_are_refused_with_what_there_is(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        scan(tmp_path / "a.npz")


def test_damage_is_one_sentence_and_leaves_nothing(tmp_path, cache):
    np.savez_compressed(tmp_path / "a.npz", images=pixels(8, 90, 90), labels=np.arange(8) % 2)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be read as arrays of numpy"):
            scan(tmp_path / "a.npz")
    broken = bytearray(whole)
    broken[300:320] = bytes(20)
    (tmp_path / "a.npz").write_bytes(broken)
    with pytest.raises(DataError, match="cannot be read as arrays of numpy|is damaged"):
        scan(tmp_path / "a.npz")
    assert not cache.exists() or not list((cache / "arrays").iterdir())
