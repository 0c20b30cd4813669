"""Sources: the shipped digits, folders in memory and on disk, bad images, torchvision's datasets."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from residuum.data.catalog import NAMED, facts
from residuum.data.sources import evaluation_transform, normalise, open_source, read_image
from residuum.errors import DataError
from residuum.preprocessing import Preprocessing

SHARED = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample.tar"


def source(data, channels=3, image_size=0, skip=False, root=Path("nowhere")):
    return open_source(facts(str(data)), channels=channels, image_size=image_size, root=root, skip_bad_images=skip)


def test_the_digits_are_the_uci_test_set():
    digits = source("digits", channels=1)
    assert len(digits.train) + len(digits.test) == 1797
    labels = torch.cat([digits.train.labels, digits.test.labels])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.train.images.shape[1:] == (8, 8, 1)
    assert digits.train.images.max() == 255


def test_the_digits_split_is_fixed_stratified_and_disjoint():
    one, two = source("digits", channels=1), source("digits", channels=1)
    assert torch.equal(one.test.images, two.test.images)
    assert torch.bincount(one.test.labels).min() >= 35
    train = {bytes(image.numpy().tobytes()) for image in one.train.images}
    shared = sum(bytes(image.numpy().tobytes()) in train for image in one.test.images)
    assert shared == 0


def test_the_shipped_file_is_small_and_says_where_it_is_from():
    folder = Path(read_image.__code__.co_filename).parent / "digits"
    assert (folder / "digits.npz").stat().st_size < 100_000
    text = (folder / "README.md").read_text()
    assert "CC BY 4.0" in text
    assert "UCI" in text


def test_the_shipped_file_is_what_the_script_makes():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits()
    digits = source("digits", channels=1)
    made = np.rint(load_digits.images * (255 / 16)).astype(np.uint8)
    ours = torch.cat([digits.train.images, digits.test.images]).numpy()
    assert sorted(image.tobytes() for image in made) == sorted(image[..., 0].tobytes() for image in ours)


def test_mean_and_deviation_are_those_of_the_training_images():
    digits = source("digits", channels=1)
    values = digits.train.images.double() / 255
    assert digits.preprocessing.mean[0] == pytest.approx(values.mean().item(), rel=1e-9)
    assert digits.preprocessing.std[0] == pytest.approx(values.std(unbiased=False).item(), rel=1e-9)
    normal = normalise(digits.train.images.permute(0, 3, 1, 2), digits.preprocessing)
    assert normal.mean().item() == pytest.approx(0, abs=1e-5)
    assert normal.std().item() == pytest.approx(1, abs=1e-3)


def test_small_images_of_one_size_are_held_in_memory(image_folder):
    root = image_folder(side=16)
    held = source(root)
    assert held.train.images.shape == (24, 16, 16, 3)
    expected = np.asarray(Image.open(root / "train" / "blue" / "0.png"))
    assert np.array_equal(held.train.images[0].numpy(), expected)


def test_large_images_stay_files(image_folder):
    files = source(image_folder(side=80))
    assert isinstance(files.train.images, tuple)
    assert files.preprocessing.image_size == (224, 224)


def test_an_image_size_is_kept_to(image_folder):
    assert source(image_folder(side=16), image_size=24).preprocessing.image_size == (24, 24)


def test_a_folder_can_be_read_in_grey(image_folder):
    assert source(image_folder(side=16), channels=1).train.images.shape == (24, 16, 16, 1)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\nbroken", b"\xff\xd8\xff\xe0broken"])
def test_a_bad_image_is_named_or_left_out_when_asked(image_folder, content):
    root = image_folder(side=16)
    bad = root / "train" / "green" / "3.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"green/3\.png cannot be decoded.*--skip-bad-images") as caught:
        source(root)
    assert "\n" not in str(caught.value)
    left = source(root, skip=True)
    assert left.skipped == (str(bad),)
    assert len(left.train) == 23
    assert torch.bincount(left.train.labels).tolist() == [8, 7, 8]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_modes_become_rgb_or_grey(tmp_path, mode):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = Image.fromarray(values) if mode == "I;16" else Image.new("RGB", (8, 8), (250, 120, 10)).convert(mode)
    image.save(tmp_path / "x.png")
    for channels in (1, 3):
        pixels = read_image(str(tmp_path / "x.png"), channels)
        assert pixels.shape == (channels, 8, 8)
        assert pixels.dtype == torch.uint8


def test_exif_orientation_is_followed(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[274] = 6  # a quarter turn
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(str(tmp_path / "x.jpg"), 3).shape == (3, 20, 10)


def test_a_missing_image_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match="no image file"):
        read_image(str(tmp_path / "x.jpg"), 3)


@pytest.mark.parametrize("crop", [0.0, 0.875])
def test_preprocessing_gives_the_promised_size(crop):
    transform = evaluation_transform(Preprocessing(3, (32, 32), (0.5,) * 3, (0.2,) * 3, crop))
    assert transform(torch.zeros(3, 50, 91, dtype=torch.uint8)).shape == (3, 32, 32)


def test_a_download_that_fails_says_where_the_files_belong(tmp_path, monkeypatch):
    from torchvision import datasets

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    with pytest.raises(DataError, match="cifar10 could not be downloaded to .*no route to host.*put"):
        source("cifar10", root=tmp_path / "cache")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_torchvision_datasets_become_sources(name, tmp_path, monkeypatch):
    """Through a stand-in with the attributes that torchvision's classes have; the real files cannot be had offline."""
    from torchvision import datasets

    about = NAMED[name]
    shape = (28, 28) if about.channels == 1 else (32, 32, 3)

    class Stand:
        def __init__(self, root, train, download):
            assert Path(root).is_dir()
            assert download
            count = 20 if train else 10
            pixels = np.random.default_rng(train).integers(0, 256, (count, *shape)).astype(np.uint8)
            self.data = torch.from_numpy(pixels) if about.channels == 1 else pixels
            self.targets = list(range(count))
            self.classes = list(about.classes)

    monkeypatch.setattr(datasets, {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}.get(name, "FashionMNIST"), Stand)
    made = source(name, channels=about.channels, root=tmp_path)
    assert made.train.images.shape == (20, *shape[:2], about.channels)
    assert made.test.labels.tolist() == list(range(10))
    assert made.classes == about.classes


def test_class_names_are_torchvisions_own():
    from torchvision import datasets

    assert NAMED["fashion-mnist"].classes == tuple(datasets.FashionMNIST.classes)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the ImageNet sample, which is not part of the repository")
def test_photographs_as_they_come_in_the_wild_are_read(tmp_path):
    with tarfile.open(SHARED) as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".JPEG")][:40]
        archive.extractall(tmp_path, members=members, filter="data")
    for path in tmp_path.rglob("*.JPEG"):
        with Image.open(path) as image:
            width, height = image.size
        assert read_image(str(path), 3).shape == (3, height, width)
