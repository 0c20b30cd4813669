"""The same images in every kind of dataset: the same order, splits, batches and weights; and what hostile images do."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import COLOURS, paint
from tests.data.kinds import KINDS, as_kind
from tests.train.runs import StopAfter, same, tiny

from residuum.data.catalog import scan, split_files
from residuum.data.decoding import image_size, read_image
from residuum.data.loaders import Schedule, make_loader
from residuum.data.places import Slice, SliceFile
from residuum.data.settings import Augmentation, DataSettings
from residuum.data.sources import open_dataset
from residuum.errors import DataError
from residuum.train import fit, resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 images of three colours, JPEG and PNG."""
    root = tmp_path_factory.mktemp("kinds") / "colours"
    for split, count in (("train", 80), ("test", 20)):
        for label, (name, colour) in enumerate(COLOURS.items()):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                ending = "jpg" if i % 3 else "png"
                paint(
                    root / split / name / f"{i}.{ending}", 16, colour, seed=1000 * label + i + 500 * (split == "test")
                )
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """What the folder's images train."""
    return fit(tiny(folder, epochs=1, batch_size=64), out=tmp_path_factory.mktemp("runs") / "folder", callbacks=[]).path


@pytest.fixture(scope="module", params=KINDS)
def kind(request, folder, tmp_path_factory):
    """The same images as another kind."""
    return as_kind(folder, request.param, tmp_path_factory.mktemp("other"))


def listed(catalog):
    splits = split_files(catalog, 0.2)
    return {split: [(catalog.name_of(place), label) for place, label in files] for split, files in splits.items()}


def test_names_order_splits_and_digest_are_those_of_the_folder(folder, kind):
    one, other = scan(folder), scan(kind)
    assert (other.classes, other.channels, other.image_size) == (one.classes, one.channels, one.image_size)
    assert listed(other) == listed(one)
    assert other.digest == one.digest
    assert other.in_memory


def test_batches_of_files_are_those_of_the_folder(folder, kind):
    def batches(path):
        settings = DataSettings(path=str(path), image_size=(24, 24), holdout=0.2)
        data = open_dataset(scan(path), settings, channels=3, cache=None)
        loader = make_loader(
            data.train, data.preprocessing, batch_size=48, seed=1, train=True, device=torch.device("cpu"), workers=0,
            augmentation=Augmentation(crop_scale=(0.3, 1.0), flip="random"), skip_bad_images=False,
        )  # fmt: skip
        return list(loader.epoch(1))

    for (images, labels), (others, theirs) in zip(batches(folder), batches(kind), strict=True):
        assert torch.equal(labels, theirs)
        assert torch.equal(images, others)


@pytest.mark.slow
def test_weights_are_those_of_the_folder(kind, trained, tmp_path):
    other = fit(tiny(kind, epochs=1, batch_size=64), out=tmp_path / "run", callbacks=[]).path
    assert same(trained, other)
    rows = [json.loads((run / "metrics.jsonl").read_text()) for run in (trained, other)]
    assert rows[0]["data_digest"] == rows[1]["data_digest"]


@pytest.mark.slow
@pytest.mark.usefixtures("each_step")
def test_a_run_that_was_stopped_goes_on_with_the_same_images_as_another_kind(folder, trained, tmp_path):
    recipe = tiny(folder, epochs=1, batch_size=64)
    stopped = fit(recipe, out=tmp_path / "run", callbacks=[StopAfter(2)])
    assert stopped.stopped_by is not None
    other = recipe.replace({"data.path": str(as_kind(folder, "images.tar", tmp_path)), "precision": "fp32"})
    resume(tmp_path / "run", recipe=other, callbacks=[])
    assert same(trained, tmp_path / "run")


def test_a_tar_that_is_gone_on_with_by_another_number_of_processes_gives_each_image_once(folder, tmp_path):
    data = open_dataset(
        scan(as_kind(folder, "images.tar", tmp_path)),
        DataSettings(image_size=(24, 24), holdout=0.0),
        channels=3,
        cache=None,
    )

    def labels_and_means(schedule_start, world):
        parts = []
        for rank in range(world):
            loader = make_loader(
                data.train, data.preprocessing, batch_size=24, seed=0, train=True, device=torch.device("cpu"),
                workers=0, augmentation=Augmentation(), skip_bad_images=False, rank=rank, world=world,
            )  # fmt: skip
            begin, end = schedule_start
            steps = list(loader.epoch(0, begin))[: end - begin]
            parts.append([images for images, _ in steps])
        return [torch.cat(step) for step in zip(*parts, strict=True)]

    begun, rest = labels_and_means((0, 4), 2), labels_and_means((4, 10), 1)
    seen = [image.numpy().tobytes() for step in [*begun, *rest] for image in step]
    assert len(seen) == 240
    assert len(set(seen)) == 240
    ids = [Schedule(240, 24, 0, True, rank, 2).batches(0)[:4] for rank in (0, 1)] + [
        Schedule(240, 24, 0, True).batches(0)[4:]
    ]
    assert sorted(int(i) for part in ids for batch in part for i in batch) == list(range(240))


# -- hostile images ----------------------------------------------------------------------------------------------------


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(*shape, kind=np.uint8):
    return np.random.default_rng(3).integers(0, np.iinfo(kind).max, shape).astype(kind)


def bomb():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return saved(Image.fromarray(noise(20, 30, 3)), "JPEG", exif=exif, quality=95)


PHOTO = Image.fromarray(noise(40, 30, 3))
GOOD = {  # height, width of each as it is read
    "cmyk.jpg": (saved(PHOTO.convert("CMYK"), "JPEG"), (40, 30)),
    "sixteen.png": (saved(Image.fromarray(noise(40, 30, kind=np.uint16)), "PNG"), (40, 30)),
    "palette.png": (saved(PHOTO.convert("P"), "PNG", transparency=3), (40, 30)),
    "palette.gif": (saved(PHOTO.convert("P"), "GIF"), (40, 30)),
    "bits.png": (saved(PHOTO.convert("1"), "PNG"), (40, 30)),
    "alpha.png": (saved(PHOTO.convert("RGBA"), "PNG"), (40, 30)),
    "grey-alpha.png": (saved(PHOTO.convert("LA"), "PNG"), (40, 30)),
    "turned.jpg": (turned(), (30, 20)),
    "png.jpg": (saved(PHOTO, "PNG"), (40, 30)),
    "jpeg.png": (saved(PHOTO, "JPEG"), (40, 30)),
    "one.png": (saved(PHOTO.resize((1, 1)), "PNG"), (1, 1)),
    "thin.png": (saved(PHOTO.resize((1, 500)), "PNG"), (500, 1)),
}
BAD = {
    "empty.jpg": b"",
    "cut.jpg": saved(PHOTO, "JPEG")[:-200],
    "cut.png": saved(PHOTO, "PNG")[:-300],
    "header.png": saved(PHOTO, "PNG")[:20],
    "text.jpg": b"<html>404 not found</html>",
    "zeros.png": bytes(5000),
    "bomb.png": bomb(),
    "float.tif": saved(Image.fromarray(noise(8, 8).astype(np.float32)), "TIFF"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder of 20 odd files in two classes, none of one size, and a pipe; only the folder's scan meets the pipe."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(noise(70 + i, 90, 3)).save(root / label / f"good{i}.png")
    for i, (name, data) in enumerate([*((n, d) for n, (d, _) in GOOD.items()), *BAD.items()]):
        (root / "ab"[i % 2] / name).write_bytes(data)
    os.mkfifo(root / "a" / "pipe.png")
    return root


@pytest.mark.parametrize("name", ["folder", *KINDS])
def test_hostile_images_are_counted_or_one_sentence_and_none_gets_another_label(hostile, name, tmp_path):
    path = hostile if name == "folder" else as_kind(hostile, name, tmp_path)
    catalog = scan(path)
    if name == "folder":
        assert catalog.left_out == {"links, pipes or devices that are no files": 1}
    expected = {
        f"{'ab'[i % 2]}/{n}": i % 2 for i, n in enumerate([*GOOD, *BAD])
    }  # fmt: skip
    labels = {catalog.name_of(place): label for place, label in catalog.files["train"]}
    assert len(labels) == 32
    assert {n: labels[n] for n in expected} == expected
    settings = DataSettings(path=str(path), image_size=(24, 24), holdout=0.0, skip_bad_images=True)
    data = open_dataset(catalog, settings, channels=3, cache=None)
    for skip in (True, False):
        loader = make_loader(
            data.train, data.preprocessing, batch_size=8, seed=0, train=False, device=torch.device("cpu"), workers=0,
            augmentation=Augmentation(), skip_bad_images=skip,
        )  # fmt: skip
        if skip:
            seen = torch.cat([found for _, found in loader.epoch(0)])
            assert torch.bincount(seen).tolist() == [12, 12]
            assert len(loader.skipped) == len(BAD)
            assert {n for n in BAD if any(f"{n}'" in said for said in loader.skipped)} == BAD.keys()
            assert all(len(said) <= 500 and said.isprintable() for said in loader.skipped)
        else:
            with pytest.raises(DataError, match="--skip-bad-images"):
                list(loader.epoch(0))


def test_of_a_part_of_a_file_only_the_header_is_read_where_only_the_size_is_asked_for(tmp_path):
    data = saved(Image.fromarray(noise(1500, 1000, 3)), "PNG")
    (tmp_path / "many").write_bytes(b"before" + data)
    place = Slice(str(tmp_path / "many"), 6, len(data), "x.png")
    with SliceFile(place) as file:
        reads = []
        inner = file.readinto
        file.readinto = lambda buffer: reads.append(inner(buffer)) or reads[-1]
        assert Image.open(io.BufferedReader(file)).size == (1000, 1500)
        assert sum(reads) < 100_000 < len(data)
    with SliceFile(place) as file:
        file.seek(-10, io.SEEK_END)
        assert file.read(100) == data[-10:]
        with pytest.raises(OSError, match="before the beginning"):
            file.seek(-1)
    assert image_size(place) == (1500, 1000)


@pytest.mark.parametrize("name", GOOD)
def test_odd_images_that_are_sound_are_read_alike_in_a_file_and_in_a_part_of_one(hostile, name, tmp_path):
    data, size = GOOD[name]
    (tmp_path / "many").write_bytes(b"before" + data + b"behind")
    (tmp_path / name).write_bytes(data)
    part = Slice(str(tmp_path / "many"), 6, len(data), name)
    assert image_size(part) == image_size(str(tmp_path / name)) == size
    for channels in (1, 3):
        assert torch.equal(read_image(part, channels), read_image(str(tmp_path / name), channels))
