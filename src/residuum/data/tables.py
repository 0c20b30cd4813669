"""Hugging Face datasets: of the hub, saved to disk, or in Parquet files. All end as Arrow files on disk.

The bytes of an image in an Arrow file lie there in one piece, so that an image is a `Slice` of it and training needs
neither `datasets` nor `pyarrow`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from residuum.data.listing import Catalog, Found, class_order, sort_out, split_called
from residuum.data.places import Place, Slice
from residuum.data.tars import shard_splits
from residuum.errors import DataError, first_line, quoted
from residuum.extras import need

# Columns by these names are preferred where several could be meant.
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label", "class", "target")
_NAMES = ("path", "file_name", "filename", "file", "name", "__key__")


def is_saved(root: str) -> bool:
    """Whether a folder is what `save_to_disk` of a dataset or of a dict of datasets wrote."""
    folder = Path(root)
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def scan_saved(root: str) -> Catalog:
    """The catalog of a folder that `save_to_disk` wrote; raises `DataError` and `MissingExtraError`."""
    return _scan(root, lambda datasets: datasets.load_from_disk(root))


def scan_hub(name: str, repository: str) -> Catalog:
    """The catalog of a dataset of the hub, downloaded once to its cache; raises `DataError` and `MissingExtraError`.

    `repository` is `NAME`, or `NAME:CONFIG` where a dataset has several.
    """
    if not repository.strip():
        raise DataError("hf: needs the name of a dataset, such as hf:uoft-cs/cifar10")
    return _scan(name, lambda datasets: datasets.load_dataset(*repository.split(":", 1)))


def scan_parquet(name: str, paths: Sequence[str]) -> Catalog:
    """The catalog of Parquet files, whose names or folders say their splits; raises as `scan_hub` does.

    `datasets` writes them as Arrow files into its cache, once.
    """
    splits: dict[str, list[str]] = {}
    for path, split in shard_splits(name, paths).items():
        splits.setdefault(split, []).append(path)
    return _scan(name, lambda datasets: datasets.load_dataset("parquet", data_files=splits))


def _scan(name: str, load: Any) -> Catalog:
    datasets = need("datasets", extra="hf")
    try:
        loaded = load(datasets)
    except Exception as error:  # whatever the hub, the disk or a file says
        raise DataError(f"{quoted(name, 150)} cannot be opened as a dataset: {first_line(error)}") from error
    left_out: Counter[str] = Counter()
    splits: dict[str, Any] = {}
    for called, part in (loaded if isinstance(loaded, Mapping) else {"train": loaded}).items():
        split = split_called(called)
        if split is None or split in splits:
            left_out[f"images of the split {quoted(called, 30)}"] += len(part)
        else:
            splits[split] = part
    if "train" not in splits:
        have = ", ".join(quoted(called, 30) for called in loaded)
        raise DataError(f"{quoted(name, 200)} has no train split; it has {have}")
    image, label = _columns(name, splits["train"].features)
    about = splits["train"].features[label]
    inner = getattr(about, "feature", about[0] if isinstance(about, list) else None)
    classes = getattr(inner if inner is not None else about, "names", None)
    found = [
        row
        for split, part in splits.items()
        for row in _rows(name, split, part, image, label, classes, inner is not None, left_out)
    ]
    if len({row.name for row in found}) < len(found):
        found = [row._replace(name=f"{row.split}/{row.name}") for row in found]
        found = [row._replace(place=cast(Slice, row.place)._replace(name=row.name)) for row in found]
    if classes is None:
        classes = class_order({text for row in found if row.split == "train" for text in row.labels})
    return sort_out(name, found, classes=tuple(classes), several=inner is not None, left_out=left_out)


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of images and labels; raises `DataError` where it is not clear which they are."""

    def plain(feature: Any) -> str:
        return str(getattr(feature, "dtype", ""))

    def is_image(feature: Any) -> bool:
        kind = type(feature).__name__
        return kind == "Image" or (isinstance(feature, dict) and feature.keys() >= {"bytes"}) or plain(feature) in (
            "binary", "large_binary"
        )  # fmt: skip

    def is_label(feature: Any) -> bool:
        inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
        return type(inner).__name__ == "ClassLabel"

    images = [column for column, feature in features.items() if is_image(feature)]
    labels = [
        column
        for column, feature in features.items()
        if is_label(feature) or (column in _LABELS and plain(feature).startswith(("int", "uint", "string")))
    ]
    chosen = []
    for what, columns, known in (("images", images, _IMAGES), ("labels", labels, _LABELS)):
        best = [column for column in known if column in columns] or columns
        if not best or (len(best) > 1 and best[0] not in known):
            have = ", ".join(f"{quoted(c, 30)} ({type(f).__name__})" for c, f in list(features.items())[:8])
            which = "which of its columns are" if best else "no column that is sure to be"
            raise DataError(f"{quoted(name, 120)} does not say {which} {what}, one must be: {have}")
        chosen.append(best[0])
    return chosen[0], chosen[1]


def _rows(
    name: str,
    split: str,
    part: Any,
    image: str,
    label: str,
    classes: Sequence[str] | None,
    several: bool,
    left_out: Counter[str],
) -> Iterator[Found]:
    """The images of one split of a dataset, in the order of its rows."""
    columns = [column for column in _NAMES if str(getattr(part.features.get(column), "dtype", "")) == "string"]
    listed: list[Place | None] = []
    cells: dict[str, list[Any]] = {column: [] for column in [label, *columns]}
    for entry in part.cache_files:
        for batch in _batches(entry["filename"], [image, *cells]):
            listed += _places(batch.column(image), batch.file, batch.whole)
            for column in cells:
                cells[column] += batch.column(column).to_pylist()
    if len(listed) != len(part):
        raise DataError(
            f"{quoted(name, 200)} has {len(part):,} rows of {split} that are not those of its files in order; save it "
            "with save_to_disk"
        )
    places = [place for place in listed if place is not None]
    if len(places) < len(listed):
        raise DataError(
            f"{len(listed) - len(places):,} of the {len(listed):,} {split} images of {quoted(name, 150)} are neither "
            f"in it nor files that are there, first that of row {listed.index(None):,}"
        )
    own = [place.name if isinstance(place, Slice) else place for place in places]
    names = next((values for values in (*(cells[c] for c in columns), own) if _tell_apart(values)), None)
    names = names or [f"{row:08d}" for row in range(len(places))]
    labels = [tuple(value) if several and value is not None else (value,) for value in cells[label]]
    known = [all(_is_label(v, classes) for v in given) for given in labels]
    if split != "train" and not any(known):  # as those of many tests are: nobody else is to know them
        left_out[f"images of the split {quoted(split)}, which has no labels"] += len(known)
        return
    if not all(known):
        raise DataError(
            f"row {known.index(False):,} of the {split} images of {quoted(name, 200)} has no label that is a class"
        )
    for row, (place, given) in enumerate(zip(places, labels, strict=True)):
        called = (classes[v] if classes is not None and isinstance(v, int) else str(v) for v in given)
        if isinstance(place, Slice):
            part_of = place._replace(name=names[row])
        else:  # the whole of a file, under the name that it has here
            part_of = Slice(place, 0, os.stat(place).st_size, names[row])  # noqa: PTH116
        yield Found(split, names[row], part_of, tuple(dict.fromkeys(called)), part_of.size)


def _is_label(value: Any, classes: Sequence[str] | None) -> bool:
    """Whether it names a class: text, or a number from 0 to that of the last class."""
    if isinstance(value, int):
        return value >= 0 and (classes is None or value < len(classes))
    return value is not None


def _tell_apart(values: list[Any]) -> bool:
    """Whether values can be names: each is there, and no two are alike."""
    return all(values) and len(set(values)) == len(values)


class _Batch(NamedTuple):
    """Some rows of an Arrow file, columns by name, and the buffer that maps the whole file."""

    columns: dict[str, Any]
    file: str
    whole: Any

    def column(self, name: str) -> Any:
        return self.columns[name]


def _batches(file: str, columns: Sequence[str]) -> Iterator[_Batch]:
    """The rows of an Arrow file, validated: what reads them does not look whether offsets lie within the file."""
    pyarrow = need("pyarrow", extra="hf")
    try:
        whole = pyarrow.memory_map(file).read_buffer()
        try:
            batches = list(pyarrow.ipc.open_stream(pyarrow.BufferReader(whole)))
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(pyarrow.BufferReader(whole))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            chosen = {name: batch.column(name) for name in columns}
            for cells in chosen.values():
                cells.validate(full=True)
            yield _Batch(chosen, file, whole)
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{quoted(file, 200)} cannot be read as an Arrow file: {first_line(error)}") from None


def _places(cells: Any, file: str, whole: Any) -> Iterator[Place | None]:
    """Where the images of a column lie, row by row; None for one that is neither in it nor a file of its own."""
    pyarrow = need("pyarrow", extra="hf")
    paths: list[str | None] = [None] * len(cells)
    if pyarrow.types.is_struct(cells.type):
        fields = [cells.type.field(i).name for i in range(cells.type.num_fields)]
        if "path" in fields:
            paths = cells.field("path").to_pylist()
        cells = cells.field("bytes")
    there = cells.is_valid().to_pylist()
    for begin, end, inside, path in zip(*_bounds(cells, whole, file), there, paths, strict=True):
        if inside:
            yield Slice(file, begin, end - begin, path or "")
        else:
            yield path if path and os.path.isfile(path) else None  # noqa: PTH113


def _bounds(cells: Any, whole: Any, file: str) -> tuple[list[int], list[int]]:
    """Where each cell of a binary column begins and ends in the file that its buffers map."""
    if not len(cells):
        return [], []
    _, offsets, data = cells.buffers()
    width: Any = np.int64 if str(cells.type).startswith("large") else np.int32
    bounds: NDArray[Any] = np.frombuffer(offsets, width)[cells.offset : cells.offset + len(cells) + 1].astype(np.int64)
    if data is None:  # no image is in the file
        return [0] * len(cells), [0] * len(cells)
    begin = data.address - whole.address
    if begin < 0 or begin + data.size > whole.size:
        raise DataError(f"{quoted(file, 200)} is compressed inside; save it anew with save_to_disk, which does not")
    bounds += begin
    return bounds[:-1].tolist(), bounds[1:].tolist()
