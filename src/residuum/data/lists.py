"""Lists of image files: `.csv`, `.tsv`, `.json` and `.jsonl`, a line or an object for each image.

    path,label,split
    photos/1.jpg,cat,train

`path` is relative to the list's folder. An image of several classes has them in `labels`, as `cat|dog`, or as a list in
JSON. `split` (train, val or test) and `weight` (how often an image is drawn in training, 1 for once an epoch) may be
missing.
"""

import csv
import json
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from residuum.data.listing import SPLITS, Catalog, Found, sort_out, split_called
from residuum.data.places import relative
from residuum.errors import DataError, quoted

LISTS = {".csv": ",", ".tsv": "\t", ".json": "", ".jsonl": ""}  # endings, and what stands between two columns
COLUMNS = ("path", "label", "labels", "split", "weight")
HEAVIEST = 1e6  # weight of an image
_SEVERAL = "|"  # between the classes of an image
_Row = tuple[str, Mapping[str, Any]]  # where it stands, in words, and what it says


def scan_list(path: str) -> Catalog:
    """The catalog of a list; raises `DataError`, which counts the images that are missing and names the first ones."""
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122
    try:
        rows = list(_separated(path, LISTS[ending]) if LISTS[ending] else _objects(path, ending))
    except UnicodeDecodeError as error:
        raise DataError(f"{quoted(path, 200)} is not in UTF-8: byte {error.start:,}; save it in that") from None
    except OSError as error:
        raise DataError(f"{quoted(path, 200)} cannot be read: {error.strerror}") from None
    if not rows:
        raise DataError(f"{quoted(path, 200)} lists no image")
    there = {name for _, row in rows for name in row}
    _refuse_columns(path, there)
    left_out: Counter[str] = Counter()
    for name in sorted(there - {*COLUMNS}):
        left_out[f"columns of the list that are not read ({quoted(name, 30)})"] = 1
    found: dict[str, Found] = {}
    lines: dict[str, str] = {}
    missing: list[str] = []
    root = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    for where, row in rows:
        image = _image(path, root, where, row, several="labels" in there, missing=missing)
        one = posixpath.normpath(image.name)  # however it is written
        before = found.setdefault(one, image)
        lines.setdefault(one, where)
        if before is not image:
            if before[4:] != image[4:] or (before.split, before.labels) != (image.split, image.labels):
                raise DataError(
                    f"{quoted(image.name, 100)} stands twice in {quoted(path, 100)}, as {_about(before)} in "
                    f"{lines[one]} and as {_about(image)} in {where}; keep one of them"
                )
            left_out["lines that name an image again"] += 1
    if missing:
        count = len(missing)
        some = ", ".join(quoted(name, 60) for name in missing[:3]) + (", ..." if count > 3 else "")
        are = "are" if count > 1 else "is"
        raise DataError(
            f"{count:,} of the {len(rows):,} images {are} not where {quoted(path, 100)} says, or no regular files: "
            f"{some}; paths are relative to the list's folder"
        )
    return sort_out(path, found.values(), root=root, several="labels" in there, left_out=left_out)


def _about(image: Found) -> str:
    return f"{quoted(_SEVERAL.join(image.labels), 40)} of {image.split}"


def _refuse_columns(path: str, there: set[str]) -> None:
    if "path" not in there or not there & {"label", "labels"} or {"label", "labels"} <= there:
        have = ", ".join(quoted(name, 30) for name in sorted(there)[:6])
        raise DataError(
            f"{quoted(path, 120)} has {have} as its columns; it needs 'path' and either 'label' or, for images of "
            "several classes, 'labels', and may have 'split' and 'weight': the names stand in the first line, or in "
            "each JSON object"
        )


def _separated(path: str, delimiter: str) -> Iterator[_Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            heading = [name.strip().lower() for name in next(reader, [])]
            if len(set(heading)) < len(heading):
                raise DataError(f"{quoted(path, 200)} has two columns of one name in its first line")
            if heading and "path" not in heading:
                _refuse_columns(path, set(heading))
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(heading):
                    raise DataError(
                        f"line {reader.line_num:,} of {quoted(path, 200)} has {len(cells)} columns but the first one "
                        f"{len(heading)}; put values that hold {quoted(delimiter)} into quotes"
                    )
                yield f"line {reader.line_num:,}", dict(zip(heading, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"line {reader.line_num:,} of {quoted(path, 200)} cannot be read: {error}") from None


def _objects(path: str, ending: str) -> Iterator[_Row]:
    def parsed(text: str, where: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} of {quoted(path, 200)} is not valid JSON: {error}") from None

    with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123
        if ending == ".json":
            values = parsed(file.read(), "the text")
            if not isinstance(values, list):
                raise DataError(f"{quoted(path, 200)} holds no JSON list; it must be a list of objects, one an image")
            rows: Iterator[tuple[str, Any]] = ((f"entry {i:,}", value) for i, value in enumerate(values, 1))
        else:
            rows = ((f"line {i:,}", parsed(text, f"line {i:,}")) for i, text in enumerate(file, 1) if text.strip())
        for where, value in rows:
            if not isinstance(value, dict):
                raise DataError(
                    f'{where} of {quoted(path, 200)} is no JSON object such as {{"path": ..., "label": ...}}'
                )
            yield where, {name.strip().lower(): part for name, part in value.items()}


def _image(path: str, root: str, where: str, row: Mapping[str, Any], *, several: bool, missing: list[str]) -> Found:
    """What a line says; an image that is not there is noted in `missing`."""

    def wrong(what: str) -> DataError:
        return DataError(f"{where} of {quoted(path, 200)} {what}")

    file = row.get("path")
    if not isinstance(file, str) or not file.strip() or "\0" in file:
        raise wrong("names no image: its 'path' is missing or empty")
    file = file.strip()
    place = file if os.path.isabs(file) else f"{root.rstrip('/')}/{file.removeprefix('./')}"  # noqa: PTH117
    text = row.get("split")
    split = "train" if text in (None, "") else split_called(str(text).strip())
    if split is None:
        raise wrong(f"has the split {quoted(text, 40)}; it must be one of {', '.join(SPLITS)}")
    labels = _labels(row.get("labels" if several else "label"), several)
    if labels is None:
        wanted = "'cat', or 'cat|dog' for several" if several else "a class"
        raise wrong(f"has no label that can be used; it must be {wanted}")
    if not several and _SEVERAL in labels[0]:
        raise wrong(f"has {quoted(labels[0], 60)} as its label; for images of several classes call the column 'labels'")
    weight = _weight(row.get("weight"))
    if weight is None:
        raise wrong(f"has the weight {quoted(row['weight'], 40)}; it must be a number from 0 to {HEAVIEST:g}")
    size = _bytes(place)
    if size is None:
        missing.append(file)
    return Found(split, relative(place, root), place, labels, size or 0, weight)


def _labels(value: Any, several: bool) -> tuple[str, ...] | None:
    """The names of classes that a value gives; none where it gives none."""
    if several and isinstance(value, list):  # an empty one says that the image is of none of the classes
        parts = [_label(part) for part in value]
    else:
        text = _label(value)
        parts = [_label(part) for part in text.split(_SEVERAL)] if several and text is not None else [text]
    named = tuple(part for part in parts if part is not None)
    return tuple(dict.fromkeys(named)) if len(named) == len(parts) else None


def _weight(value: Any) -> float | None:
    if value is None or value == "":
        return 1.0
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= HEAVIEST else None


def _label(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def _bytes(path: str) -> int | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (called for each of a million files)
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
