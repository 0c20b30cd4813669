"""Tar shards: gone through once, then every image in them is read by its place, in any order, by any process.

Class folders may stand in a tar as they do outside (`train/cat/1.jpg`), or each image has its label beside it, as
webdataset writes it: `0001.jpg` and `0001.cls`, `0001.txt` or `0001.json`. What was found in a large tar is kept, in a
file beside it or in the user's cache.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residuum.data.decoding import is_image
from residuum.data.folders import is_hidden, kind_of, split_folders
from residuum.data.listing import Catalog, Found, class_order, sort_out, split_called
from residuum.data.places import Slice, read_slice
from residuum.errors import DataError, first_line, quoted
from residuum.files import cache_folder, write_text

LABELS = (".cls", ".txt", ".json")  # endings of what says an image's label beside it, the first that is there counts
WORTH_AN_INDEX = 2000  # files in a tar from which on what was found is kept
_FORMAT = 1  # of the index
_LONGEST_LABEL = 1 << 16  # bytes
_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
_TARS = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """What lies in a tar: name, offset and bytes of each file, the texts that are labels, and what is not read."""

    members: tuple[tuple[str, int, int], ...]
    texts: dict[str, str]
    left_out: dict[str, int]


def find_shards(root: str, endings: tuple[str, ...]) -> list[str]:
    """Files of these endings in a folder, and in folders named as splits or `data`.

    None where other folders are there, too: those are of images then, and a tar that lies among them is not read.
    """
    found, folders = _within(root, endings)
    for folder in folders:
        name = os.path.basename(folder)  # noqa: PTH119
        inner, below = _within(folder, endings) if split_called(name) or name == "data" else ([], [])
        if not inner or below:
            return []
        found += inner
    return found


def _within(folder: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The files of these endings in a folder, and the folders in it, both sorted; hidden ones are passed by."""
    files, folders = [], []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.name.lower().endswith(endings) and entry.is_file():
                files.append(entry.path)
    return files, folders


def refuse_compressed(path: str) -> None:
    """Raise `DataError` for a compressed tar, of which no file can be read by itself."""
    with contextlib.suppress(OSError):
        with open(path, "rb") as file:  # noqa: PTH123
            begin = file.read(6)
        tool = next((tool for magic, tool in _COMPRESSED.items() if begin.startswith(magic)), None)
        if tool is not None and (_TARS.search(path) or path.lower().endswith(".tar")):
            raise DataError(
                f"{quoted(path, 200)} is a compressed tar, in which no image can be read without all before it; unpack "
                f"the images, or make it a plain .tar by '{tool}'"
            )


def shard_splits(name: str, paths: Sequence[str]) -> dict[str, str]:
    """The split that each shard's name or folder says, `val` of `imagenet-validation-0001.tar`; train of others.

    Where all would say the same, they say nothing.
    """
    splits = {}
    for path in paths:
        words = re.split(r"[-_.]", os.path.basename(path))[:-1]  # noqa: PTH119
        named = [split for word in words if (split := split_called(word)) is not None]
        folder = split_called(os.path.basename(os.path.dirname(path))) if path != name else None  # noqa: PTH119, PTH120
        splits[path] = named[0] if named else folder or "train"
    return splits if len(set(splits.values())) > 1 else dict.fromkeys(paths, "train")


def scan_tars(name: str, paths: Sequence[str]) -> Catalog:
    """The catalog of tars; raises `DataError` for one that is compressed or cut off."""
    left_out: Counter[str] = Counter()
    shards: dict[str, Shard] = {}
    for path in paths:
        shards[path] = shard_of(path)
        left_out.update(shards[path].left_out)
    images = [
        Slice(path, offset, size, member)
        for path, shard in shards.items()
        for member, offset, size in shard.members
        if is_image(member)
    ]
    if not images:
        raise DataError(f"{quoted(name, 200)} holds no image in any tar")
    splits = shard_splits(name, paths)
    classes = None
    if any(shard.texts for shard in shards.values()):
        found = _beside(name, shards, images, splits)
        classes = tuple(class_order({row.labels[0] for row in found if row.split == "train"}))
    else:
        found = _in_folders(name, images, splits, left_out)
    if len({row.name for row in found}) < len(found):  # they are numbered anew in each shard
        found = _by_shard(name, paths, found)
    return sort_out(name, found, classes=classes, left_out=left_out)


def _by_shard(name: str, paths: Sequence[str], found: list[Found]) -> list[Found]:
    """The same images, each with the name of its shard before its own."""
    stems = {path: os.path.splitext(os.path.basename(path))[0] for path in paths}  # noqa: PTH119, PTH122
    if len(set(stems.values())) < len(stems):
        raise DataError(f"{quoted(name, 200)} has images of one name in tars of one name; rename the tars")
    renamed = []
    for row in found:
        assert isinstance(row.place, Slice)
        full = f"{stems[row.place.file]}/{row.name}"
        renamed.append(row._replace(name=full, place=row.place._replace(name=full)))
    return renamed


def _in_folders(name: str, images: Sequence[Slice], split_of: dict[str, str], left_out: Counter[str]) -> list[Found]:
    """Images whose folders in the tar are their classes, inside splits or not."""
    parts = [place.name.split("/") for place in images]
    top = 0  # folders that all images share, as a tar of one folder has it
    while (
        min(map(len, parts)) > top + 1
        and len({part[top] for part in parts}) == 1
        and split_called(parts[0][top]) is None
    ):
        top += 1
    folders = sorted({part[top] for part in parts if len(part) > top + 1})
    deep = {part[top] for part in parts if len(part) > top + 2}
    splits = {folder: split for split, folder in split_folders(name, folders, deep.__contains__).items()}
    found = []
    for place, part in zip(images, parts, strict=True):
        split, below = split_of[place.file], top
        if splits:
            if part[top] not in splits:
                left_out["images beside the splits"] += 1
                continue
            split, below = splits[part[top]], top + 1
        if len(part) < below + 2:
            left_out["images outside class folders"] += 1
            continue
        found.append(Found(split, place.name, place, (part[below],), place.size))
    if not found:
        raise DataError(
            f"{quoted(name, 200)} has {len(images):,} images, but no class folders in its tars and no label beside an "
            f"image ({', '.join(LABELS)})"
        )
    return found


def _beside(name: str, shards: dict[str, Shard], images: Sequence[Slice], split_of: dict[str, str]) -> list[Found]:
    """Images with the label that stands beside each."""
    found, missing = [], []
    first: dict[tuple[str, str], str] = {}
    for place in images:
        other = first.setdefault((place.file, _key(place.name)), place.name)
        if other != place.name:
            raise DataError(
                f"a sample of {quoted(name, 120)} has two images, {quoted(other, 80)} and {quoted(place.name, 80)}, "
                "and its label does not say of which; leave one out of the tar"
            )
        label = _label(shards[place.file].texts, _key(place.name))
        if label is None:
            missing.append(place.name)
            continue
        inside = [split for part in place.name.split("/")[:-1] if (split := split_called(part)) is not None]
        found.append(Found(inside[0] if inside else split_of[place.file], place.name, place, (label,), place.size))
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(images):,} images of {quoted(name, 200)} have no label beside them that can "
            f"be used ({', '.join(LABELS)}), first {quoted(missing[0], 80)}"
        )
    return found


def _key(member: str) -> str:
    """What the files of one sample share: everything up to the first dot of the file's name."""
    folder, base = posixpath.split(member)
    return posixpath.join(folder, base.partition(".")[0])


def _label(texts: dict[str, str], key: str) -> str | None:
    for ending in LABELS:
        text = texts.get(f"{key}{ending}")
        if text is None:
            continue
        if ending != ".json":
            return text.strip() or None
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(values, dict):
            values = next((values[key] for key in ("label", "cls", "class", "class_name") if key in values), None)
        usable = isinstance(values, str | int) and not isinstance(values, bool)
        return (str(values).strip() or None) if usable else None
    return None


# -- going through a tar -----------------------------------------------------------------------------------------------


def shard_of(path: str) -> Shard:
    """What lies in a tar, from its index where there is one that fits; raises `DataError`."""
    try:
        status = os.stat(path)  # noqa: PTH116
        stamp = [_FORMAT, status.st_size, status.st_mtime_ns]
        kept = _kept(path)
        for place in kept:
            shard = _read_index(place, stamp)
            if shard is not None:
                return shard
        shard = _gone_through(path)
    except OSError as error:
        raise DataError(f"{quoted(path, 200)} cannot be read: {error.strerror}") from None
    if len(shard.members) >= WORTH_AN_INDEX:
        text = json.dumps({"stamp": stamp, "members": shard.members, "texts": shard.texts, "left_out": shard.left_out})
        for place in kept:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, text, DataError)
                break
            except (OSError, DataError):  # a folder that may not be written to; the next, or none
                continue
    return shard


def _kept(path: str) -> tuple[Path, Path]:
    """Where an index is looked for and kept: beside the tar, else in the user's cache."""
    whole = os.path.abspath(path)  # noqa: PTH100
    digest = hashlib.blake2b(os.fsencode(whole), digest_size=8).hexdigest()
    beside = Path(whole).with_name(f".{os.path.basename(whole)}.index.json")  # noqa: PTH119
    return beside, cache_folder() / "tars" / f"{digest}.json"


def _read_index(place: Path, stamp: list[int]) -> Shard | None:
    """What an index says; nothing where there is none, or it is of another tar or damaged."""
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
        if values["stamp"] != stamp:
            return None
        members = tuple((str(name), int(offset), int(size)) for name, offset, size in values["members"])
        texts = {str(name): str(text) for name, text in values["texts"].items()}
        left_out = {str(kind): int(count) for kind, count in values["left_out"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    inside = all(offset >= 0 and size >= 0 and offset + size <= stamp[1] for _, offset, size in members)
    return Shard(members, texts, left_out) if inside else None


def _gone_through(path: str) -> Shard:
    refuse_compressed(path)
    members: dict[str, tuple[str, int, int]] = {}
    left_out: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            archive.errorlevel = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                _note(member, members, left_out)
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        cut = "is cut off" if "unexpected end" in str(error) else "is no tar that can be read"
        raise DataError(f"{quoted(path, 200)} {cut} ({first_line(error)}); fetch or make it again") from None
    _refuse_bad_end(path, end)
    texts = {}
    for name, offset, size in members.values():
        if name.endswith(LABELS):
            if size > _LONGEST_LABEL:
                left_out["texts too long for labels"] += 1
                continue
            texts[name] = read_slice(Slice(path, offset, size, name)).decode("utf-8", "replace").lstrip("\ufeff")
    images = {_key(name) for name in members if is_image(name)}
    labels = {name: text for name, text in texts.items() if name[: name.rindex(".")] in images}
    for name in members:
        if name not in labels and not is_image(name):
            left_out[f"{kind_of(name)} in tars"] += 1
    return Shard(tuple(members.values()), labels, dict(left_out))


def _note(member: Any, members: dict[str, tuple[str, int, int]], left_out: Counter[str]) -> None:
    """Keep what a header says of a file."""
    name = posixpath.normpath(member.name).lstrip("/")
    if member.isdir():
        return
    if any(is_hidden(part) for part in name.split("/") if part != ".."):
        left_out["hidden files in tars"] += 1
    elif not member.isreg() or member.issparse():
        left_out["links, pipes, devices or sparse files in tars"] += 1
    else:
        if members.pop(name, None) is not None:
            left_out["files in tars that a later one of the same name replaces"] += 1
        members[name] = (name, member.offset_data, member.size)


def _refuse_bad_end(path: str, end: int) -> None:
    """Raise `DataError` where a tar does not end as tars do: what reads it stops there without a word."""
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(end)
        mark = file.read(2 * _BLOCK)
        if len(mark) < _BLOCK or any(mark[:_BLOCK]):
            what = "is cut off: its end mark is missing" if len(mark) < _BLOCK else f"is damaged at byte {end:,}"
            raise DataError(f"{quoted(path, 200)} {what}; fetch or make it again")
        while rest := file.read(1 << 20):
            if any(rest):
                raise DataError(
                    f"{quoted(path, 200)} goes on after its end mark, as tars that were put one behind another do; "
                    "keep them as files of their own"
                )
