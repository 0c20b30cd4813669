"""Packed files: what was put in comes out, whole or not at all; scaled images keep names, labels and splits."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from residuum.data import packed
from residuum.data.catalog import scan, split_files
from residuum.data.decoding import read_image
from residuum.data.packing import pack
from residuum.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Nine photographs of two classes, of several sizes, one of them grey."""
    for i in range(9):
        folder = tmp_path / "data" / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (70 + 10 * i, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels if i else pixels[..., 0]).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_bytes_are_copied_where_no_size_is_given(root, tmp_path):
    done = pack(root, tmp_path / "a.packed")
    found = scan(tmp_path / "a.packed")
    assert done.images == 9
    assert done.size == (tmp_path / "a.packed").stat().st_size
    assert found.digest == scan(root).digest
    for place, _ in found.files["train"]:
        data = (tmp_path / "a.packed").read_bytes()[place.offset : place.offset + place.size]
        assert data == (root / place.name).read_bytes()


def test_scaled_images_have_a_shorter_side_of_the_size_and_are_those_of_torchvision(root, tmp_path):
    from torchvision.transforms.v2 import functional

    pack(root, tmp_path / "a.packed", size=100)
    found = scan(tmp_path / "a.packed")
    for place, _ in found.files["train"]:
        image = read_image(str(root / place.name), 3)
        expected = functional.resize(image, [100], antialias=True) if min(image.shape[1:]) > 100 else image
        assert np.array_equal(read_image(place, 3).numpy(), expected.numpy())
        assert place.size == expected.numel()
    assert {min(place.shape[:2]) for place, _ in found.files["train"]} == {70, 80, 90, 100}


def test_scaled_images_are_held_out_as_those_they_were_and_have_another_digest(root, tmp_path):
    pack(root, tmp_path / "a.packed", size=80)
    one, other = scan(root), scan(tmp_path / "a.packed")
    splits = [{s: [(c.name_of(p), n) for p, n in f] for s, f in split_files(c, 0.3).items()} for c in (one, other)]
    assert splits[0] == splits[1]
    assert one.digest != other.digest


def test_a_packed_file_can_be_packed_again(root, tmp_path):
    pack(root, tmp_path / "a.packed", size=80)
    pack(tmp_path / "a.packed", tmp_path / "b.packed")
    for (one, _), (two, _) in zip(*(scan(tmp_path / f"{n}.packed").files["train"] for n in "ab"), strict=True):
        assert one[1:] == two[1:]


def test_grey_pixels_become_rgb_and_back_without_loss(root, tmp_path):
    pack(root, tmp_path / "a.packed", size=1000)
    grey = next(place for place, _ in scan(tmp_path / "a.packed").files["train"] if place.name == "train/a/0.png")
    expected = read_image(str(root / "train/a/0.png"), 1)
    assert np.array_equal(read_image(grey, 1).numpy(), expected.numpy())


def test_a_bad_image_stops_packing_or_is_left_out_and_said(root, tmp_path):
    (root / "train" / "a" / "4.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="4.png' cannot be decoded .*--skip-bad-images"):
        pack(root, tmp_path / "a.packed", size=80)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    done = pack(root, tmp_path / "a.packed", size=80, skip_bad_images=True)
    assert (done.images, len(done.skipped)) == (8, 1)
    assert len(scan(tmp_path / "a.packed").files["train"]) == 8


@pytest.mark.parametrize("ending", [".tar", ".csv", ".npz", ".parquet"])
def test_a_packed_file_is_known_by_what_is_in_it(root, tmp_path, ending):
    pack(root, tmp_path / f"a{ending}")
    assert scan(tmp_path / f"a{ending}").digest == scan(root).digest


def test_what_is_there_is_never_written_over(root, tmp_path):
    (tmp_path / "a.packed").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        pack(root, tmp_path / "a.packed")
    assert (tmp_path / "a.packed").read_text() == "mine"
    with pytest.raises(DataError, match="cannot write"):
        pack(root, tmp_path / "nowhere" / "a.packed")
    with pytest.raises(DataError, match="digits is a named dataset"):
        pack("digits", tmp_path / "b.packed")


def test_a_packed_file_that_is_cut_off_is_refused_in_a_sentence(root, tmp_path):
    pack(root, tmp_path / "a.packed")
    whole = (tmp_path / "a.packed").read_bytes()
    for length in (16, 17, 40, len(whole) // 2, len(whole) - 33, len(whole) - 1):
        (tmp_path / "cut.packed").write_bytes(whole[:length])
        with pytest.raises(DataError, match="is a damaged packed file"):
            scan(tmp_path / "cut.packed")


@pytest.mark.parametrize(
    "change",
    [
        {"images": [["train", "a", 10**12, 0, None]]},
        {"images": [["train", "a", -1, 0, None]]},
        {"images": [["train", "a", 3, 7, None]]},
        {"images": [["nowhere", "a", 3, 0, None]]},
        {"images": [["train", "a", 3, 0, [1, 1, 2]]]},
        {"images": [["train", "a", 3]]},
        {"images": 3},
        {"classes": None},
        {"channels": "x"},
    ],
)
def test_an_index_that_makes_no_sense_is_refused_in_a_sentence(tmp_path, change):
    rows = [(("train", name, 3, label, None), b"abc") for label, name in enumerate("ab")]
    packed.write_packed(tmp_path / "a", rows, classes=("x", "y"), channels=3, several=False, stamp="", weights={})
    whole = (tmp_path / "a").read_bytes()
    begin, size = struct.unpack("<QQ", whole[-16:])
    index = json.loads(zlib.decompress(whole[begin : begin + size])) | change
    text = zlib.compress(json.dumps(index).encode())
    (tmp_path / "a").write_bytes(whole[:begin] + text + whole[-32:-16] + struct.pack("<QQ", begin, len(text)))
    with pytest.raises(DataError, match="is a damaged packed file"):
        scan(tmp_path / "a")
