"""One scan finds what a dataset holds, whatever kind it is of. No torch."""

import contextlib
import gc
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from residuum.data.arrays import scan_arrays
from residuum.data.folders import scan_folder
from residuum.data.listing import NAMED, USUAL_SIZE, Catalog, Files, held_out, split_files
from residuum.data.lists import LISTS, scan_list
from residuum.data.packed import is_packed, scan_packed
from residuum.data.tables import is_saved, scan_hub, scan_parquet, scan_saved
from residuum.data.tars import find_shards, refuse_compressed, scan_tars
from residuum.errors import DataError, nearest, quoted

__all__ = ["NAMED", "USUAL_SIZE", "Catalog", "Files", "held_out", "scan", "split_files"]

HUB = "hf:"
_KINDS = "a list (.csv, .tsv, .json, .jsonl), a .tar, a .npz, a .parquet or a packed file"


def scan(path: str | Path) -> Catalog:
    """The catalog of a dataset: a name, `hf:` and a name on the hub, or a path of any kind; raises `DataError`.

    Names and sizes of all images are read, and the headers of some; none is decoded.
    """
    if not isinstance(path, str | Path):
        raise DataError(
            f"a dataset is a path or a name, and this is a {type(path).__name__}; save one of Hugging Face's with "
            "save_to_disk and give the folder. One that streams has no order in which a run could go on"
        )
    text = str(path)
    if text in NAMED:
        return NAMED[text]
    with _collector_paused():
        return _scan(text)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """A scan makes millions of tuples and no garbage; Python's collector, which looks for it, takes half the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _scan(text: str) -> Catalog:
    if text.startswith(HUB):
        return scan_hub(text, text.removeprefix(HUB))
    root = os.path.expanduser(text)  # noqa: PTH111 (Path's raises for a user that is not there)
    if os.path.isdir(root):  # noqa: PTH112 (Path's raises for a path that cannot be)
        return _scan_inside(root)
    if os.path.isfile(root):  # noqa: PTH113
        return _scan_file(root)
    if os.path.exists(root):  # noqa: PTH110
        raise DataError(f"{quoted(text, 200)} is neither a folder nor a regular file")
    several = _matching(root)
    if several:
        return _scan_several(root, several)
    raise DataError(
        f"{quoted(text, 200)} is neither a dataset ({', '.join(NAMED)}) nor a folder or file that exists"
        f"{nearest(text, NAMED)}"
    )


def _scan_inside(root: str) -> Catalog:
    if is_saved(root):
        return scan_saved(root)
    shards = find_shards(root, (".tar",))
    if shards:
        return scan_tars(root, shards)
    tables = find_shards(root, (".parquet",))
    if tables:
        return scan_parquet(root, tables)
    return scan_folder(root)


def _scan_file(root: str) -> Catalog:
    if is_packed(root):  # whatever its name ends with
        return scan_packed(root)
    ending = os.path.splitext(root)[1].lower()  # noqa: PTH122
    if ending in LISTS:
        return scan_list(root)
    if ending == ".tar":
        return scan_tars(root, [root])
    if ending == ".npz":
        return scan_arrays(root)
    if ending == ".parquet":
        return scan_parquet(root, [root])
    refuse_compressed(root)
    raise DataError(f"{quoted(root, 200)} is a file, but not {_KINDS}; give one, or a folder with a folder a class")


def _matching(pattern: str) -> list[str]:
    """The files that a pattern such as `shards/*.tar` matches, sorted."""
    if not glob.has_magic(pattern) or "\0" in pattern:
        return []
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))  # noqa: PTH113, PTH207


def _scan_several(pattern: str, paths: list[str]) -> Catalog:
    endings = {os.path.splitext(path)[1].lower() for path in paths}  # noqa: PTH122
    if endings == {".tar"}:
        return scan_tars(pattern, paths)
    if endings == {".parquet"}:
        return scan_parquet(pattern, paths)
    have = ", ".join(quoted(ending, 20) for ending in sorted(endings)[:5])
    raise DataError(
        f"{quoted(pattern, 200)} matches files that end in {have}; a pattern is for .tar shards or .parquet files alone"
    )
