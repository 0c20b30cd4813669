"""Lists of images: columns in any order, every encoding that spreadsheets write, and mistakes in one sentence."""

import json

import pytest
import torch
from tests.conftest import paint

from residuum.data.catalog import scan, split_files
from residuum.data.loaders import make_loader
from residuum.data.packing import pack
from residuum.data.settings import Augmentation, DataSettings
from residuum.data.sources import open_dataset
from residuum.errors import DataError

HEADING = "path,label,split\n"


@pytest.fixture
def photos(tmp_path):
    """Eight images; gives a function that writes a list beside them."""
    (tmp_path / "photos").mkdir()
    for i in range(8):
        paint(tmp_path / "photos" / f"{i}.png", 12, (0, 0, 200), seed=i)
    (tmp_path / "photos" / "a, b.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())

    def write(text, name="list.csv", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write


def lines(count=8, splits=("train",)):
    return "".join(f"photos/{i}.png,{'cat' if i % 2 else 'dog'},{splits[i % len(splits)]}\n" for i in range(count))


def names(found, split="train"):
    return [(found.name_of(place), label) for place, label in found.files[split]]


def test_a_list_says_path_label_and_split(photos):
    found = scan(
        photos(HEADING + lines(splits=("train", "train", "Validation", "test", "train", "train", "valid", "test")))
    )
    assert found.classes == ("cat", "dog")
    assert {split: len(files) for split, files in found.files.items()} == {"train": 4, "val": 2, "test": 2}
    assert names(found, "val") == [("photos/2.png", 1), ("photos/6.png", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADING + lines(),
        (HEADING + lines()).replace("\n", "\r\n"),
        HEADING + lines().replace("photos", '"./photos').replace(".png", '.png"'),
        "Label , PATH\n" + "".join(f"{'cat' if i % 2 else 'dog'},photos/{i}.png\n" for i in range(8)),
        HEADING + "\n" + lines() + ",,\n\n",
    ],
    ids=["BOM", "CRLF", "quotes", "order", "empty lines"],
)
def test_however_a_spreadsheet_writes_it_the_list_is_the_same(photos, text):
    assert names(scan(photos(text))) == [
        *((f"photos/{i}.png", 0) for i in (1, 3, 5, 7)), *((f"photos/{i}.png", 1) for i in (0, 2, 4, 6))
    ]  # fmt: skip


def test_a_comma_in_a_name_stands_in_quotes(photos):
    found = scan(photos(f'{HEADING}{lines()}"photos/a, b.png",cat,train\n'))
    assert ("photos/a, b.png", 0) in names(found)


def test_tabs_and_json_say_the_same(photos):
    expected = scan(photos(HEADING + lines()))
    rows = [dict(zip(("path", "label", "split"), line.split(","), strict=True)) for line in lines().splitlines()]
    for other in (
        photos((HEADING + lines()).replace(",", "\t"), "list.tsv"),
        photos(json.dumps(rows), "list.json"),
        photos("\n".join(map(json.dumps, rows)), "list.jsonl"),
    ):
        assert (scan(other).files, scan(other).digest) == (expected.files, expected.digest)


def test_an_absolute_path_below_the_list_has_the_name_of_a_relative_one(photos, tmp_path):
    text = HEADING + lines()
    one, other = scan(photos(text)), scan(photos(text.replace("photos", str(tmp_path / "photos")), "other.csv"))
    assert other.digest == one.digest
    assert split_files(other, 0.5) == split_files(one, 0.5)


def test_images_of_several_classes_are_a_list_of_labels(photos):
    text = "path,labels\nphotos/0.png,cat|dog\nphotos/1.png,dog\nphotos/2.png, owl | cat\n"
    found = scan(photos(text))
    assert found.several
    assert found.classes == ("cat", "dog", "owl")
    assert names(found) == [("photos/0.png", (0, 1)), ("photos/1.png", (1,)), ("photos/2.png", (0, 2))]
    rows = [{"path": "photos/0.png", "labels": ["cat", "dog"]}, {"path": "photos/1.png", "labels": []}]
    found = scan(photos(json.dumps(rows), "list.json"))
    assert names(found) == [("photos/0.png", (0, 1)), ("photos/1.png", ())]


def test_weights_say_how_often_images_are_drawn_and_go_with_them(photos, tmp_path):
    text = "path,label,weight\n" + "".join(f"photos/{i}.png,{'ab'[i % 2]},{(3, '', 1, 0.5)[i % 4]}\n" for i in range(8))
    found = scan(photos(text))
    weights = {found.name_of(place): weight for place, weight in found.weights.items()}
    assert weights == {"photos/0.png": 3, "photos/4.png": 3, "photos/3.png": 0.5, "photos/7.png": 0.5}
    assert found.digest != scan(photos(text.replace(",3", ",2"), "other.csv")).digest
    pack(tmp_path / "list.csv", tmp_path / "a.packed")
    packed = scan(tmp_path / "a.packed")
    assert {packed.name_of(place): weight for place, weight in packed.weights.items()} == weights
    assert packed.digest == found.digest
    data = open_dataset(found, DataSettings(path=found.name, holdout=0.0), channels=3, cache=None)
    loader = make_loader(
        data.train, data.preprocessing, batch_size=8, seed=0, train=True, device=torch.device("cpu"), workers=0,
        augmentation=Augmentation(), skip_bad_images=False,
    )  # fmt: skip
    seen = torch.cat([labels for epoch in range(40) for _, labels in loader.epoch(epoch)])
    assert (seen == 0).float().mean() == pytest.approx(8 / 11, abs=0.05)  # a has 3, 1, 3, 1 and b 1, 0.5, 1, 0.5


def test_what_is_not_read_is_counted(photos):
    text = "path,label,camera\n" + lines().replace(",train", ",x") + "photos/0.png,dog,x\n"
    found = scan(photos(text))
    assert found.left_out == {
        "columns of the list that are not read ('camera')": 1, "lines that name an image again": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists no image"),
        (HEADING, "lists no image"),
        (lines(), "it needs 'path' and either 'label' or, for images of several classes, 'labels'"),
        (HEADING.replace("label", "labell") + lines(), "'labell'.*it needs 'path' and either 'label'"),
        ((HEADING + lines()).replace(",", ";"), "it needs 'path' and either 'label'"),
        ("path,path,label\n" + lines(), "two columns of one name"),
        (HEADING + lines() + "photos/9.png,cat,train\nno.png,cat,train\n", "2 of the 10 images are not .*'photos/9"),
        (HEADING + lines() + "photos,cat,train\n", "1 of the 9 images is not where .*no regular files: 'photos'"),
        (HEADING + lines() + "photos/0.png,cat,trian\n", "line 10 .* the split 'trian'; it must be one of train"),
        (HEADING + lines() + "photos/0.png,,train\n", "line 10 .* has no label"),
        (HEADING + lines() + ",cat,train\n", "line 10 .* names no image"),
        (HEADING + lines() + "photos/0.png,cat,train\n", "stands twice in .* as 'dog' of train in line 2 and as 'cat'"),
        (HEADING + lines() + "./photos//0.png,dog,test\n", "stands twice .*'dog' of train .*'dog' of test in line 10"),
        (HEADING + lines() + "photos/a, b.png,cat,train\n", "line 10 .* 4 columns but the first one 3; .* into quotes"),
        (HEADING + lines() + 'photos/"0.png"x,cat,train\n"', "line 1. .* cannot be read"),
        (HEADING + lines().replace("cat", "dog"), "has 1 class to train with"),
        (HEADING + lines().replace("train", "val"), "has images of val but none to train with"),
        (HEADING + lines(7) + "photos/7.png,owl,test\n", "test images of .* have classes that .* have not: 'owl'"),
        (HEADING + lines(7) + "photos/7.png,cat|dog,train\n", "'cat|dog' as its label; .* call the column 'labels'"),
        ("path,label,weight\nphotos/0.png,cat,-1\n", "line 2 .* has the weight '-1'; it must be a number from 0 to 1e"),
        ("path,label,weight\nphotos/0.png,cat,nan\n", "line 2 .* has the weight 'nan'"),
        ("path,label,weight\nphotos/0.png,cat,0\nphotos/1.png,dog,0\n", "all its train images the weight 0"),
        ("path,labels\nphotos/0.png,cat|\nphotos/1.png,dog\n", "line 2 .* has no label"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_refused_in_a_sentence(photos, text, says):
    with pytest.raises(DataError, match=says) as refused:
        scan(photos(text))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("list.json", "{}", "holds no JSON list"),
        ("list.json", "[" * 100_000, "is not valid JSON"),
        ("list.json", '[{"path": "photos/0.png"}]', "it needs 'path' and either 'label'"),
        ("list.json", '["photos/0.png"]', "entry 1 .* is no JSON object"),
        ("list.jsonl", '{"path": "photos/0.png", "label": "a"}\n{"path"', "line 2 of .* is not valid JSON"),
        ("list.jsonl", '{"path": "photos/0.png", "label": true}', "line 1 .* has no label"),
        ("list.jsonl", '{"path": ["photos/0.png"], "label": 1}', "line 1 .* names no image"),
    ],
)
def test_json_that_is_no_list_of_images_is_refused_in_a_sentence(photos, name, text, says):
    with pytest.raises(DataError, match=says):
        scan(photos(text, name))


def test_another_encoding_is_named(photos):
    with pytest.raises(DataError, match="is not in UTF-8: byte 2"):
        scan(photos(HEADING + "photos/é.png,cat,train\n", encoding="latin-1"))
