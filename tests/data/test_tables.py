"""Hugging Face datasets: saved to disk, in Parquet files, of the hub; which columns, splits and classes they have."""

import io

import numpy as np
import pytest
from PIL import Image

from residuum.data import tables
from residuum.data.catalog import scan
from residuum.data.decoding import read_image
from residuum.errors import DataError, MissingExtraError


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 10, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def hf(monkeypatch, tmp_path):
    found = pytest.importorskip("datasets", reason="the extra hf, which brings datasets, is not installed")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    found.disable_progress_bars()
    return found


def made(hf, count=6, **more):
    """A split of three classes that are not in the order of their names."""
    features = {"image": hf.Image(), "label": hf.ClassLabel(names=["wolf", "cat", "owl"])}
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 3 for i in range(count)]}
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    return hf.Dataset.from_dict(columns, hf.Features(features))


def first_pixels(place):
    return read_image(place, 3).permute(1, 2, 0).numpy()


def test_a_saved_dataset_keeps_its_classes_in_their_order_and_its_pixels(hf, tmp_path):
    made(hf).save_to_disk(tmp_path / "a")
    found = scan(tmp_path / "a")
    assert found.classes == ("wolf", "cat", "owl")
    assert [label for _, label in found.files["train"]] == [0, 0, 1, 1, 2, 2]
    for (place, _), row in zip(found.files["train"], (0, 3, 1, 4, 2, 5), strict=True):
        assert place.name == f"{row:08d}"
        assert np.array_equal(first_pixels(place), np.asarray(Image.open(io.BytesIO(png(row)))))


def test_a_column_called_label_goes_before_another_of_classes(hf, tmp_path):
    values, feature = ["left", "right"] * 3, hf.ClassLabel(names=["left", "right"])
    data = made(hf, label=(["cat", "dog", "cat"] * 2, hf.Value("string")), camera=(values, feature))
    data.save_to_disk(tmp_path / "a")
    assert scan(tmp_path / "a").classes == ("cat", "dog")


def test_rows_of_several_files_and_of_a_selection_stay_in_their_order(hf, tmp_path):
    made(hf, 9).select([8, 2, 5, 0, 1, 4]).save_to_disk(tmp_path / "a", num_shards=3)
    found = scan(tmp_path / "a")
    rows = {place.name: (label, first_pixels(place)) for place, label in found.files["train"]}
    for number, row in enumerate([8, 2, 5, 0, 1, 4]):
        label, pixels = rows[f"{number:08d}"]
        assert label == row % 3
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(png(row)))))


def test_splits_have_any_usual_name_and_others_are_counted(hf, tmp_path):
    parts = {"train": made(hf), "validation": made(hf, 3), "test": made(hf, 3), "unsupervised": made(hf, 5)}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "a")
    found = scan(tmp_path / "a")
    assert {split: len(files) for split, files in found.files.items()} == {"train": 6, "val": 3, "test": 3}
    assert found.left_out == {"images of the split 'unsupervised'": 5}
    assert len({found.name_of(place) for files in found.files.values() for place, _ in files}) == 12


def test_a_test_split_whose_labels_are_secret_is_left_out_and_said(hf, tmp_path):
    secret = made(hf, 4).remove_columns("label").add_column("label", [-1] * 4)
    secret = secret.cast_column("label", made(hf).features["label"])
    hf.DatasetDict({"train": made(hf), "test": secret}).save_to_disk(tmp_path / "a")
    found = scan(tmp_path / "a")
    assert found.files.keys() == {"train"}
    assert found.left_out == {"images of the split 'test', which has no labels": 4}


def test_images_may_be_files_that_a_dataset_names(hf, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    columns = {"img": [str(tmp_path / f"{i}.png") for i in range(4)], "labels": ["b", "a", "b", "a"]}
    data = hf.Dataset.from_dict(columns, hf.Features({"img": hf.Image(), "labels": hf.Value("string")}))
    hf.DatasetDict({"train": data}).save_to_disk(tmp_path / "a")
    found = scan(tmp_path / "a")
    assert found.classes == ("a", "b")
    assert [label for _, label in found.files["train"]] == [0, 0, 1, 1]
    assert np.array_equal(first_pixels(found.files["train"][0][0]), np.asarray(Image.open(io.BytesIO(png(1)))))


def test_several_labels_are_several_classes(hf, tmp_path):
    labels = [[0, 2], [1], [], [2, 0, 2]]
    kind = hf.Sequence(hf.ClassLabel(names=["wolf", "cat", "owl"]))
    data = made(hf, 4).remove_columns("label").add_column("tags", labels).cast_column("tags", kind)
    data.save_to_disk(tmp_path / "a")
    found = scan(tmp_path / "a")
    assert found.several
    assert [label for _, label in found.files["train"]] == [(0, 2), (1,), (), (0, 2)]


def test_parquet_files_say_their_splits_by_their_names(hf, tmp_path):
    (tmp_path / "a" / "data").mkdir(parents=True)
    for split, count in (("train", 6), ("test", 3)):
        made(hf, count).to_parquet(tmp_path / "a" / "data" / f"{split}-00000-of-00001.parquet")
    found = scan(tmp_path / "a")
    assert {split: len(files) for split, files in found.files.items()} == {"train": 6, "test": 3}
    assert found.classes == ("wolf", "cat", "owl")
    assert scan(tmp_path / "a" / "data" / "*.parquet").digest == found.digest
    alone = scan(tmp_path / "a" / "data" / "train-00000-of-00001.parquet")
    assert alone.files.keys() == {"train"}


def test_parquet_of_other_writers_has_bytes_and_numbers_or_words_as_labels(hf, tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": [png(i) for i in range(12)], "target": list(range(12))})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = scan(tmp_path / "a.parquet")
    assert found.classes == tuple(map(str, range(12)))
    assert [label for _, label in found.files["train"]] == list(range(12))


def test_a_name_on_the_hub_is_loaded_whole(hf, tmp_path, monkeypatch):
    made(hf).save_to_disk(tmp_path / "a")
    asked = []
    monkeypatch.setattr(hf, "load_dataset", lambda *args: asked.append(args) or hf.load_from_disk(str(tmp_path / "a")))
    found = scan("hf:owner/name:plain")
    assert asked == [("owner/name", "plain")]
    assert found.location == "hf:owner/name:plain"
    assert len(found.files["train"]) == 6

    def offline(*args):
        raise ConnectionError("no route to host\nand a traceback")

    monkeypatch.setattr(hf, "load_dataset", offline)
    with pytest.raises(DataError, match="'hf:owner/name' cannot be opened as a dataset: no route to host"):
        scan("hf:owner/name")
    with pytest.raises(DataError, match="hf: needs the name of a dataset"):
        scan("hf:")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda hf, d: d.remove_columns("image"), "no column that is sure to be images"),
        (lambda hf, d: d.remove_columns("label"), "no column that is sure to be labels"),
        (lambda hf, d: d.rename_column("image", "a").add_column("b", [png(0)] * 6),
         "which of its columns are images, one must be: .*'a'"),
        (lambda hf, d: d.remove_columns("label").add_column("label", [0, -1, 1, 0, 1, 0]), "row 1 .* has no label"),
        (lambda hf, d: hf.DatasetDict({"test": d}), "has no train split; it has 'test'"),
        (lambda hf, d: d.remove_columns("label").add_column("label", [0] * 6), "has 1 class"),
    ],
)  # fmt: skip
def test_a_dataset_that_is_not_clear_is_refused_in_a_sentence(hf, tmp_path, change, says):
    change(hf, made(hf)).save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match=says):
        scan(tmp_path / "a")


def test_an_arrow_file_that_is_cut_off_is_refused_in_a_sentence(hf, tmp_path):
    made(hf).save_to_disk(tmp_path / "a")
    file = next((tmp_path / "a").glob("*.arrow"))
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be (opened as a dataset|read as an Arrow file)"):
            scan(tmp_path / "a")


def test_a_dataset_itself_is_no_path(hf):
    for data in (made(hf), made(hf).to_iterable_dataset()):
        with pytest.raises(DataError, match=f"this is a {type(data).__name__}; save one of Hugging Face's"):
            scan(data)


def test_without_the_extra_the_refusal_names_it(tmp_path, monkeypatch):
    def missing(module, *, extra):
        raise MissingExtraError(f"this needs {module}: {extra}")

    monkeypatch.setattr(tables, "need", missing)
    (tmp_path / "dataset_dict.json").write_text("{}")
    for path in (tmp_path, "hf:name"):
        with pytest.raises(MissingExtraError, match="datasets: hf"):
            scan(path)
