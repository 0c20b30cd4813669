"""Tar shards: names and splits, what webdataset writes, the index that is kept, and tars that are damaged."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from tests.data.kinds import add

from residuum.data import tars
from residuum.data.catalog import scan
from residuum.data.decoding import read_image
from residuum.errors import DataError


def png(seed, side=12):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shard(path, names, texts=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for i, name in enumerate(names):
            add(archive, name, png(i))
        for name, text in (texts or {}).items():
            add(archive, name, text.encode())
    return path


def names(catalog, split="train"):
    return [(catalog.name_of(place), catalog.classes[label]) for place, label in catalog.files[split]]


CLASSES = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")


@pytest.mark.parametrize("before", ["", "./", "all/", "./all/of/", "/all/"])
def test_class_folders_in_a_tar_are_classes_however_deep_the_tar_has_them(tmp_path, before):
    found = scan(shard(tmp_path / "a.tar", [before + name for name in CLASSES]))
    assert found.classes == ("cat", "dog")
    assert [label for _, label in names(found)] == ["cat", "cat", "dog", "dog"]


def test_splits_in_a_tar_are_splits(tmp_path):
    members = [f"{split}/{name}" for split in ("Train", "validation", "test") for name in CLASSES]
    found = scan(shard(tmp_path / "a.tar", [*members, "notes/cat/1.png", "train.png"]))
    assert {split: len(files) for split, files in found.files.items()} == {"train": 4, "val": 4, "test": 4}
    assert found.left_out == {"images beside the splits": 2}


@pytest.mark.parametrize("form", ["{split}-{number}.tar", "{split}/{number}.tar", "sets-{split}-{number}.tar"])
def test_shards_may_say_their_splits(tmp_path, form):
    for number, split in ((0, "train"), (1, "train"), (0, "val")):
        members = [f"{name[:4]}{split}{number}-{name[4:]}" for name in CLASSES]
        shard(tmp_path / "shards" / form.format(split=split, number=number), members)
    assert {split: len(files) for split, files in scan(tmp_path / "shards").files.items()} == {"train": 8, "val": 4}


def test_a_pattern_names_shards(tmp_path):
    for number in range(3):
        shard(tmp_path / f"s-{number}.tar", [f"{name[:4]}{number}-{name[4:]}" for name in CLASSES])
    assert len(scan(tmp_path / "s-[01].tar").files["train"]) == 8
    with pytest.raises(DataError, match="neither a dataset .* nor a folder or file that exists"):
        scan(tmp_path / "t-*.tar")
    (tmp_path / "s-9.txt").write_text("")
    with pytest.raises(DataError, match="matches files that end in '.tar', '.txt'; a pattern"):
        scan(tmp_path / "s-*")


def test_a_tar_that_lies_in_an_image_folder_changes_nothing(image_folder):
    root = image_folder()
    before = scan(root)
    for place in (root, root / "train"):
        shard(place / "old.tar", CLASSES)
        found = scan(root)
        assert (found.files, found.digest) == (before.files, before.digest)
        assert "files that end in '.tar'" in found.left_out


def test_images_that_are_numbered_anew_in_each_shard_have_the_names_of_their_shards(tmp_path):
    for number in range(2):
        shard(tmp_path / "s" / f"{number:02d}.tar", CLASSES)
    assert names(scan(tmp_path / "s"))[:2] == [("00/cat/0.png", "cat"), ("00/cat/1.png", "cat")]


@pytest.mark.parametrize(
    ("ending", "text"),
    [("cls", "{}\n"), ("txt", " {} "), ("json", '{{"label": "{}"}}'), ("json", '{{"cls": {}}}'), ("cls", "\ufeff{}")],
)
def test_labels_may_stand_beside_images_as_webdataset_writes_them(tmp_path, ending, text):
    keys = [f"{i:04d}" for i in range(12)]
    path = shard(tmp_path / "a.tar", [f"{k}.png" for k in keys], {f"{k}.{ending}": text.format(int(k)) for k in keys})
    found = scan(path)
    assert found.classes == tuple(map(str, range(12)))  # as numbers: 2 before 10
    assert names(found) == [(f"{i:04d}.png", str(i)) for i in range(12)]


def test_an_image_with_no_label_beside_it_is_refused(tmp_path):
    path = shard(
        tmp_path / "a.tar", ["1.png", "2.png", "3.png"], {"1.cls": "0", "2.cls": "1", "3.json": '{"caption": "x"}'}
    )
    with pytest.raises(DataError, match=r"1 of the 3 images .* have no label beside them .* first '3.png'"):
        scan(path)
    with pytest.raises(DataError, match=r"has 3 images, but no class folders in its tars and no label beside"):
        scan(shard(tmp_path / "b.tar", ["1.png", "2.png", "3.png"]))
    with pytest.raises(DataError, match="holds no image in any tar"):
        scan(shard(tmp_path / "c.tar", [], {"1.cls": "0"}))


def test_a_sample_of_two_images_and_one_label_is_refused(tmp_path):
    path = shard(tmp_path / "a.tar", ["1.png", "1.mask.png", "2.png"], {"1.cls": "0", "2.cls": "1"})
    with pytest.raises(DataError, match=r"a sample of .* has two images, '1.png' and '1.mask.png', and its label"):
        scan(path)


def test_what_is_no_file_is_never_followed_and_the_rest_is_counted(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for i, name in enumerate((*CLASSES, "cat/0.png", "._cat/0.png", "__MACOSX/cat/0.png")):
            add(archive, name, png(i))
        add(archive, "cat/notes.md", b"no image")
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "cat/1.png"), (tarfile.FIFOTYPE, "")):
            about = tarfile.TarInfo(f"dog/{kind.decode()}.png")
            about.type, about.linkname = kind, target
            archive.addfile(about)
    found = scan(path)
    assert [name for name, _ in names(found)] == [*CLASSES]
    assert found.left_out == {
        "files in tars that a later one of the same name replaces": 1,
        "hidden files in tars": 2,
        "links, pipes, devices or sparse files in tars": 3,
        "files that end in '.md' in tars": 1,
    }
    later = next(place for place, _ in found.files["train"] if place.name == "cat/0.png")
    assert np.array_equal(read_image(later, 3).permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(png(4)))))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_letters_of_any_script_are_read_in_every_format(tmp_path, form):
    long = "é" * 30 + "/" + "x" * 90 + ".png"
    found = scan(shard(tmp_path / "a.tar", [*CLASSES, f"cat/{long}"], format=form))
    assert (f"cat/{long}", "cat") in names(found)


def test_a_tar_may_be_given_by_processes_that_know_no_tar(tmp_path):
    path = shard(tmp_path / "a.tar", CLASSES)
    for i, (place, _) in enumerate(scan(path).files["train"]):
        assert np.array_equal(read_image(place, 3).permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(png(i)))))


# -- the index ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A tar whose index is kept, and how often tars were gone through since."""
    monkeypatch.setattr(tars, "WORTH_AN_INDEX", 1)
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    walks = []
    through = tars._gone_through
    monkeypatch.setattr(tars, "_gone_through", lambda path: walks.append(path) or through(path))
    return shard(tmp_path / "data" / "a.tar", CLASSES, {"cat/notes.md": ""}), walks


def test_a_tar_is_gone_through_once(indexed):
    path, walks = indexed
    one = scan(path)
    assert (path.parent / ".a.tar.index.json").is_file()
    assert scan(path) == one
    assert len(walks) == 1


def test_an_index_of_another_tar_or_a_damaged_one_is_made_anew(indexed):
    path, walks = indexed
    scan(path)
    index = path.parent / ".a.tar.index.json"
    text = index.read_text()
    for broken in ("", "[]", text[:-20], text.replace('"members": [[', '"members": [[7, '), json.dumps({"stamp": 1})):
        index.write_text(broken)
        assert len(scan(path).files["train"]) == 4
    values = json.loads(text)
    values["members"][0][1] = 10**9
    index.write_text(json.dumps(values))
    assert scan(path).files["train"][0][0].offset < 10**5
    assert len(walks) == 7
    shard(path, [*CLASSES, "dog/2.png"])
    assert len(scan(path).files["train"]) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_beside_a_tar_the_index_is_in_the_cache(indexed, tmp_path):
    path, walks = indexed
    path.parent.chmod(0o500)
    try:
        assert scan(path) == scan(path)
    finally:
        path.parent.chmod(0o700)
    assert len(walks) == 1
    assert len(list((tmp_path / "cache" / "tars").iterdir())) == 1


def test_the_index_goes_to_the_cache_where_it_cannot_be_beside_the_tar(indexed, tmp_path):
    path, walks = indexed
    (path.parent / ".a.tar.index.json").mkdir()  # nothing can be written under that name
    assert scan(path) == scan(path)
    assert len(walks) == 1
    assert len(list((tmp_path / "cache" / "tars").iterdir())) == 1


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_tar_that_is_cut_off_anywhere_is_refused_in_a_sentence_that_names_it(tmp_path):
    whole = shard(tmp_path / "a.tar", CLASSES).read_bytes()
    end = max(i for i in range(0, len(whole), 512) if any(whole[i : i + 512])) + 512
    for length in (*range(1, end, 97), *range(512, end + 1, 512)):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar' is (cut off|no tar|damaged)"):
            scan(tmp_path / "cut.tar")


def test_an_empty_file_is_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is no tar that can be read|is cut off"):
        scan(tmp_path / "a.tar")


def test_damage_in_the_middle_does_not_hide_what_comes_behind(tmp_path):
    path = shard(tmp_path / "a.tar", CLASSES)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    data[third : third + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"is damaged at byte {third:,}"):
        scan(path)


def test_tars_put_one_behind_another_are_refused(tmp_path):
    path = shard(tmp_path / "a.tar", CLASSES)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="goes on after its end mark"):
        scan(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path, name):
    data = shard(tmp_path / "plain.tar", CLASSES).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="is a compressed tar.*plain .tar by 'gunzip'"):
        scan(tmp_path / name)


def test_a_tar_that_becomes_shorter_after_the_scan_is_one_sentence(tmp_path):
    path = shard(tmp_path / "a.tar", CLASSES)
    places = [place for place, _ in scan(path).files["train"]]
    os.truncate(path, 1000)
    with pytest.raises(DataError, match="'dog/1.png' in .*a.tar' cannot be read: the file has become shorter"):
        read_image(places[-1], 3)
    path.unlink()
    with pytest.raises(DataError, match="'dog/1.png' in .* cannot be read: No such file"):
        read_image(places[-1], 3)
