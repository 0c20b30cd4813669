"""Datasets: the shipped digits, folders in memory and on disk, held-out images, bad images, torchvision's datasets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from residuum.data.catalog import NAMED, scan
from residuum.data.settings import DataSettings
from residuum.data.sources import normalise, open_dataset, read_image
from residuum.errors import ConfigError, DataError


def opened(data, channels=3, cache=Path("nowhere"), say=lambda text: None, **settings):
    return open_dataset(scan(data), DataSettings(path=str(data), **settings), channels=channels, cache=cache, say=say)


# -- the digits --------------------------------------------------------------------------------------------------------


def test_the_digits_are_the_uci_test_set():
    digits = opened("digits", channels=1)
    labels = torch.cat([split.labels for split in (digits.train, digits.val, digits.test)])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.train.images.shape[1:] == (8, 8, 1)
    assert digits.train.images.max() == 255


def test_the_digits_splits_are_fixed_and_disjoint():
    one, two = opened("digits", channels=1), opened("digits", channels=1)
    assert torch.equal(one.test.images, two.test.images)
    assert torch.equal(one.val.images, two.val.images)
    assert torch.bincount(one.test.labels).min() >= 35
    assert 100 < len(one.val) < 190
    seen = [{image.numpy().tobytes() for image in split.images} for split in (one.train, one.val, one.test)]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_without_a_holdout_all_training_images_are_trained_on():
    digits = opened("digits", channels=1, holdout=0.0)
    assert digits.val is None
    assert len(digits.train) + len(digits.test) == 1797


def test_the_shipped_file_is_small_and_says_where_it_is_from():
    folder = Path(read_image.__code__.co_filename).parent / "digits"
    assert (folder / "digits.npz").stat().st_size < 100_000
    text = (folder / "README.md").read_text()
    assert "CC BY 4.0" in text
    assert "UCI" in text


def test_the_shipped_file_is_what_the_script_makes():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits()
    digits = opened("digits", channels=1)
    made = np.rint(load_digits.images * (255 / 16)).astype(np.uint8)
    ours = torch.cat([split.images for split in (digits.train, digits.val, digits.test)]).numpy()
    assert sorted(image.tobytes() for image in made) == sorted(image[..., 0].tobytes() for image in ours)


def test_mean_and_deviation_are_those_of_the_training_images():
    digits = opened("digits", channels=1)
    values = digits.train.images.double() / 255
    assert digits.preprocessing.mean[0] == pytest.approx(values.mean().item(), rel=1e-9)
    assert digits.preprocessing.std[0] == pytest.approx(values.std(unbiased=False).item(), rel=1e-9)
    normal = normalise(digits.train.images.permute(0, 3, 1, 2), digits.preprocessing)
    assert normal.mean().item() == pytest.approx(0, abs=1e-5)
    assert normal.std().item() == pytest.approx(1, abs=1e-3)


# -- image folders -----------------------------------------------------------------------------------------------------


def test_small_images_of_one_size_are_held_in_memory(image_folder):
    root = image_folder(side=16)
    held = opened(root, holdout=0.0)
    assert held.train.images.shape == (24, 16, 16, 3)
    assert held.test.images.shape == (12, 16, 16, 3)
    expected = np.asarray(Image.open(root / "train" / "blue" / "0.png"))
    assert np.array_equal(held.train.images[0].numpy(), expected)


def test_small_images_need_not_be_square(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.new("RGB", (32, 48), colour).save(tmp_path / name / f"{i}.png")
    held = opened(tmp_path)
    assert held.train.images.shape[1:] == (48, 32, 3)
    assert held.preprocessing.image_size == (48, 32)


def test_an_image_of_another_size_is_brought_to_that_of_the_others(image_folder):
    root = image_folder(side=16, train=20)
    Image.new("RGB", (40, 20), "red").save(root / "train" / "blue" / "10.png")  # not among those that are looked at
    held = opened(root, holdout=0.0)
    assert held.train.images[2].float().mean((0, 1)).tolist() == [255, 0, 0]


def test_large_images_stay_files(image_folder):
    root = image_folder(side=80)
    files = opened(root, holdout=0.25)
    assert isinstance(files.train.images, tuple)
    assert files.preprocessing.image_size == (224, 224)
    assert len(files.train) + len(files.val) == 24
    assert len(files.test) == 12
    label_of = {name: i for i, name in enumerate(files.classes)}
    for split in (files.train, files.val, files.test):
        assert [label_of[Path(path).parent.name] for path in split.images] == split.labels.tolist()


def test_an_image_size_is_kept_to(image_folder):
    root = image_folder(side=16)
    assert opened(root, image_size=(24, 32)).preprocessing.image_size == (24, 32)
    assert isinstance(opened(root, image_size=(24, 32)).train.images, tuple)
    assert isinstance(opened(root, image_size=(16, 16)).train.images, torch.Tensor)


def test_a_folder_can_be_read_in_grey(image_folder):
    assert opened(image_folder(side=16), channels=1, holdout=0.0).train.images.shape == (24, 16, 16, 1)


def test_a_digest_travels_with_the_dataset(image_folder):
    root = image_folder()
    assert opened(root).digest == scan(root).digest


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\nbroken", b"\xff\xd8\xff\xe0broken"])
def test_a_bad_image_is_named_or_left_out_when_asked(image_folder, content):
    root = image_folder(side=16)
    bad = root / "train" / "green" / "3.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"green/3\.png' cannot be decoded.*--skip-bad-images") as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    left = opened(root, skip_bad_images=True, holdout=0.0)
    ((split, (said,)),) = left.skipped.items()
    assert split == "train"
    assert "green/3.png' cannot be decoded" in said
    assert torch.bincount(left.train.labels).tolist() == [8, 7, 8]
    assert (left.train.images.float().mean((1, 2)).argmax(1) == 2 - left.train.labels).all()


@pytest.mark.parametrize("side", [16, 80])
def test_a_bad_image_of_the_validation_split_is_found_before_training(image_folder, side):
    root = image_folder(side=side, test_name="val")
    (root / "val" / "red" / "1.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"val/red/1\.png' cannot be decoded.*--skip-bad-images"):
        opened(root)
    left = opened(root, skip_bad_images=True)
    assert (len(left.val), [*map(len, left.skipped.values())], [*left.skipped]) == (11, [1], ["val"])


@pytest.mark.parametrize("side", [16, 80])
def test_a_validation_split_without_a_readable_image_is_refused(image_folder, side):
    root = image_folder(side=side, test_name="val")
    for path in root.glob("val/*/*"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"val.* can be decoded"):
        opened(root, skip_bad_images=True)


def test_a_split_without_a_readable_image_in_memory_is_refused(image_folder):
    root = image_folder(side=16)
    for path in [*root.glob("train/*/*")][1:]:
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="of the train images . can be decoded and that is too few"):
        opened(root, skip_bad_images=True, holdout=0.0)


def test_channels_that_files_do_not_have_are_refused(image_folder):
    with pytest.raises(DataError, match="1 channel .* or 3 .*, but the model takes 4"):
        opened(image_folder(), channels=4)


# -- torchvision's datasets --------------------------------------------------------------------------------------------


def test_a_download_that_fails_says_where_the_files_belong(tmp_path, monkeypatch):
    from torchvision import datasets

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    with pytest.raises(DataError, match="cifar10 could not be downloaded to .*no route to host.*put"):
        opened("cifar10", cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_torchvision_datasets_become_datasets(name, tmp_path, monkeypatch):
    """Through a stand-in with the attributes that torchvision's classes have; the real files cannot be had offline."""
    from torchvision import datasets

    about = NAMED[name]
    shape = (28, 28) if about.channels == 1 else (32, 32, 3)

    class Stand:
        def __init__(self, root, train, download):
            assert Path(root).is_dir()
            assert download
            count = 200 if train else 10
            pixels = np.random.default_rng(train).integers(0, 256, (count, *shape)).astype(np.uint8)
            self.data = torch.from_numpy(pixels) if about.channels == 1 else pixels
            self.targets = [i % 10 for i in range(count)]
            self.classes = list(about.classes)

    monkeypatch.setattr(datasets, {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}.get(name, "FashionMNIST"), Stand)
    made = opened(name, channels=about.channels, cache=tmp_path)
    assert made.train.images.shape[1:] == (*shape[:2], about.channels)
    assert len(made.train) + len(made.val) == 200
    assert made.test.labels.tolist() == list(range(10))
    assert made.classes == about.classes
    assert made.preprocessing.image_size == about.image_size
    scaled = opened(name, channels=about.channels, cache=tmp_path, image_size=(64, 64)).preprocessing
    assert (scaled.image_size, scaled.crop, scaled.mean) == ((64, 64), 0.0, made.preprocessing.mean)


@pytest.mark.parametrize(
    ("said", "channels", "expected"),
    [((0.2, 0.4, 0.6), 3, (0.2, 0.4, 0.6)), ((0.2, 0.4, 0.6), 1, (0.4,)), ((0.3,), 3, (0.3, 0.3, 0.3))],
)
@pytest.mark.parametrize("side", [16, 80])
def test_mean_and_deviation_can_be_told(image_folder, said, channels, expected, side):
    made = opened(image_folder(side=side), channels=channels, mean=said, std=said)
    assert made.preprocessing.mean == made.preprocessing.std == pytest.approx(expected)


def test_as_many_means_as_channels_or_one(image_folder):
    with pytest.raises(ConfigError, match=r"data.mean is \(0.1, 0.2\); the network takes 3 channels, so give one"):
        opened(image_folder(side=16), channels=3, mean=(0.1, 0.2))


def test_class_names_are_torchvisions_own():
    from torchvision import datasets

    assert NAMED["fashion-mnist"].classes == tuple(datasets.FashionMNIST.classes)


def test_named_datasets_have_their_own_channels():
    with pytest.raises(DataError, match="digits has 1 channel but the model takes 3"):
        opened("digits", channels=3)
