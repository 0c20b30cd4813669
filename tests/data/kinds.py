"""The images of a folder as a dataset of every other kind."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest

from residuum.data.catalog import scan
from residuum.data.listing import labels_of
from residuum.data.packing import pack

KINDS = ("list.csv", "list.jsonl", "images.tar", "shards", "beside.tar", "arrow", "parquet", "images.packed")
INSTALLED = {"arrow": "datasets", "parquet": "datasets"}


def rows(root):
    """Split, name, class and bytes of each image of a folder, in no order that means anything."""
    found = scan(root)
    every = [
        (split, found.name_of(place), found.classes[labels_of(label)[0]], Path(place).read_bytes())
        for split, files in found.files.items()
        for place, label in files
    ]
    return every[::2] + every[1::2]


def add(archive, name, data):
    """A file in a tar."""
    about = tarfile.TarInfo(name)
    about.size = len(data)
    archive.addfile(about, io.BytesIO(data))


def as_kind(root, kind, out):
    """Write what a folder holds as another kind into the folder `out`; gives its path. Skips where it cannot be."""
    if kind in INSTALLED:
        pytest.importorskip(INSTALLED[kind], reason=f"the extra hf, which brings {INSTALLED[kind]}, is not installed")
    return WRITERS[kind](Path(root), Path(out) / kind)


def _csv(root, path):
    path = root / path.name  # paths are relative to the list
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "split"])
        writer.writerows([label, name, split] for split, name, label, _ in rows(root))
    return path


def _jsonl(root, path):
    path = root / path.name
    lines = (json.dumps({"path": name, "label": label, "split": split}) for split, name, label, _ in rows(root))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _tar(root, path):
    with tarfile.open(path, "w") as archive:
        for _, name, _, data in rows(root):
            add(archive, f"./{name}", data)
    return path


def _shards(root, path):
    path.mkdir()
    every = rows(root)
    for number in range(3):
        with tarfile.open(path / f"{number:03d}.tar", "w") as archive:
            for _, name, _, data in every[number::3]:
                add(archive, name, data)
    return path


def _beside(root, path):
    with tarfile.open(path, "w") as archive:
        for _, name, label, data in rows(root):
            add(archive, name, data)
            add(archive, f"{name.partition('.')[0]}.cls", f"{label}\n".encode())
    return path


def _dataset(root):
    import datasets

    classes = scan(root).classes
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes)), "path": datasets.Value("string")}
    )
    parts = {}
    for split in dict.fromkeys(split for split, *_ in rows(root)):
        here = [row for row in rows(root) if row[0] == split]
        columns = {
            "image": [{"bytes": data, "path": None} for *_, data in here],
            "label": [classes.index(label) for _, _, label, _ in here],
            "path": [name for _, name, _, _ in here],
        }
        parts[split] = datasets.Dataset.from_dict(columns, features)
    return datasets.DatasetDict(parts)


def _arrow(root, path):
    _dataset(root).save_to_disk(str(path))
    return path


def _parquet(root, path):
    path.mkdir()
    for split, part in _dataset(root).items():
        part.to_parquet(str(path / f"{split}-00000-of-00001.parquet"))
    return path


def _packed(root, path):
    pack(root, path)
    return path


WRITERS = dict(zip(KINDS, (_csv, _jsonl, _tar, _shards, _beside, _arrow, _parquet, _packed), strict=True))
