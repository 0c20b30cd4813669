"""Files to what lies in them, by content and not by ending, with counts and sizes checked before anything is read.

Nothing that came with a file is run: safetensors, torch's files by `weights_only=True`, and numpy's pickles by a reader
that knows arrays alone.
"""

import argparse
import io
import json
import mmap
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from residuum.errors import WeightsError, first_line, quoted, shortened
from residuum.weights.pickles import array_names, named_in, read_arrays, stand_ins

KEY = "residuum"  # of the metadata of files of ours
LONGEST_HEADER = 2**25  # bytes of what says names and shapes: a network of 4,000 blocks has 5 MB
LONGEST_JSON = 2**23
NAMES = ("model.safetensors", "pytorch_model.bin", "weights.safetensors")  # in a folder; the last is a run's
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this number
_PICKLES_OF_LEGACY = 5  # number, protocol, machine, content, keys of the storages
# What weights and the notes of training scripts are made of; torch knows more, which no weights need.
_PLAIN = frozenset({
    "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "__builtin__.set",
    "_codecs.encode", "argparse.Namespace", "torch.Size", "torch.device", "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.serialization._get_layout",
    "torch.storage.UntypedStorage", "torch.storage.TypedStorage", "torch._tensor._rebuild_from_type_v2", "torch.Tensor",
})  # fmt: skip
_NOT_DENSE = {
    "torch._utils._rebuild_qtensor": "quantised tensors",
    "torch.ao.": "quantised modules",
    "torch._utils._rebuild_sparse": "sparse tensors",
    "torch.sparse.": "sparse tensors",
    "torch._utils._rebuild_nested": "nested tensors",
    "torch.nested.": "nested tensors",
    "torch._utils._rebuild_meta": "tensors without data",
    "torch.distributed.": "pieces of tensors that several processes share",
    "torch._utils._rebuild_": "tensors of a kind that is not read here",
}


@dataclass(frozen=True)
class Content:
    """What lies in a file: a mapping that holds tensors somewhere, and the metadata of a file of ours."""

    tree: object
    noted: str | None = None


def read_file(path: Path) -> Content:
    """What a file holds; raises `WeightsError`."""
    path = file_of(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
            if start[:4] == b"PK\x03\x04":
                return Content(_zipped(path))
            if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
                return _safetensors(path)
            size = file.seek(0, io.SEEK_END)
            if size and start[:1] in (b"\x80", b"(", b"}", b"]", b"c"):
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    return Content(_pickled(path, mapped, legacy=start[:15] == _LEGACY[:15]))
    except WeightsError as error:
        raise WeightsError(f"{shown(path)} {error}") from None
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise WeightsError(f"{shown(path)} cannot be read as weights: {shortened(reason, 160)}") from None
    except Exception as error:  # on bytes that are no checkpoint the readers fail in ways of any kind
        raise WeightsError(
            f"{shown(path)} cannot be read as weights: it is damaged, or no plain checkpoint "
            f"({type(error).__name__}); it must be safetensors or a state dict that torch.save wrote"
        ) from None
    raise WeightsError(
        f"{shown(path)} cannot be read as weights: it is empty, damaged, or of another kind; it must be safetensors or "
        "a state dict that torch.save wrote"
    )


def shown(path: object) -> str:
    """A path as a message shows it."""
    return shortened(str(path), 160)


def file_of(path: Path) -> Path:
    """The weights file that a path names: itself, or the one in a folder; raises `WeightsError` where there is none."""
    try:
        if path.is_dir():
            found = next((path / name for name in NAMES if (path / name).is_file()), None)
            if found is None:
                raise WeightsError(f"the folder {shown(path)} has no weights in it: no {', no '.join(NAMES)}")
            return found
        if path.is_file():
            return path
        if path.exists():
            raise WeightsError(f"{shown(path)} is not a file")
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
    raise WeightsError(
        f"there is no weights file {shown(path)}; give a file, a run folder, or a reference such as hf:OWNER/NAME or "
        "torchvision:resnet50.IMAGENET1K_V2"
    )


def read_json(path: Path) -> Any:
    """What a JSON file beside weights holds; raises `WeightsError`."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_JSON + 1)
        return parse_json(text.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{shown(path)} cannot be read: {shortened(first_line(error), 160)}") from None


def parse_json(text: str) -> Any:
    """What a JSON text says; `ValueError` for one that is too long or nests too deep as well."""
    if len(text) > LONGEST_JSON:
        raise ValueError("it is longer than any config")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deep") from None


# -- safetensors -------------------------------------------------------------------------------------------------------


def _safetensors(path: Path) -> Content:
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > LONGEST_HEADER:
            raise WeightsError("cannot be read as weights: its header is longer than any weights need, or damaged")
    with safe_open(path, "pt") as file:
        noted = (file.metadata() or {}).get(KEY)
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            try:
                tensors[name] = file.get_tensor(name)  # mapped, not read
            except (SafetensorError, RuntimeError, TypeError, KeyError, AttributeError, ValueError):
                kind = quoted(file.get_slice(name).get_dtype())
                raise WeightsError(f"holds {quoted(name)} of type {kind}, which this torch cannot read") from None
        return Content(tensors, noted)


# -- torch's files and numpy's -----------------------------------------------------------------------------------------


def _zipped(path: Path) -> object:
    size = path.stat().st_size
    _check_directory(path, size)
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        twice = [name for name, count in Counter(e.filename for e in entries).items() if count > 1]
        if twice:
            raise WeightsError(f"cannot be read as weights: it has two parts named {quoted(twice[0])}")
        if sum(e.file_size for e in entries) > 4 * size + 2**24:
            raise WeightsError("unfolds to many times its size, as no weights do; save it again without compression")
        names = [e.filename for e in entries]
        if any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in names):
            raise WeightsError("is a TorchScript program and no weights; save the module's state_dict() instead")
        record = next((e for e in entries if e.filename.endswith("data.pkl")), None)
        if record is None:
            raise WeightsError("is a zip archive that torch.save did not write; take the weights out of it first")
        if record.file_size > LONGEST_HEADER:
            raise WeightsError("has a list of its parts longer than any weights need")
        stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        _check_names(named_in(io.BytesIO(file.read(record))))
    return _torch(path, mapped=stored)


def _check_directory(path: Path, size: int) -> None:
    """Refuse a zip archive with more entries than weights have, before they are listed."""
    with path.open("rb") as file:
        file.seek(max(0, size - 2**16 - 100))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise WeightsError("cannot be read as weights: it is not whole")
    (length,) = struct.unpack_from("<I", tail, at + 12)
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if length == 2**32 - 1 and wide >= 0 and len(tail) >= wide + 56:
        (length,) = struct.unpack_from("<Q", tail, wide + 40)
    if length > LONGEST_HEADER:
        raise WeightsError("has a list of its parts longer than any weights need")


def _pickled(path: Path, mapped: mmap.mmap, *, legacy: bool) -> object:
    names: set[str] = set()
    for _ in range(_PICKLES_OF_LEGACY if legacy else 1):
        names |= named_in(mapped)  # type: ignore[arg-type]
    if legacy:
        _check_names(names)
        return _torch(path, mapped=False)
    unknown = sorted(names - set(array_names()))
    if unknown:
        raise WeightsError(_more_than_tensors(unknown[0]))
    mapped.seek(0)
    return read_arrays(mapped)  # type: ignore[arg-type]


def _torch(path: Path, *, mapped: bool) -> object:
    replaced: list[Any] = [(stand_in, name) for name, stand_in in stand_ins().items() if name.startswith("numpy")]
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace, *replaced]):
        if mapped and not path.name.endswith(".safetensors"):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:  # of a path torch would ask the ending
            return torch.load(file, map_location="cpu", weights_only=True)


def _check_names(names: Iterable[str]) -> None:
    """Refuse a torch file that names what dense weights and plain notes are not made of."""
    numpys = set(array_names())
    for name in sorted(names):
        if name in _PLAIN or name in numpys or _is_storage_or_type(name):
            continue
        kind = next((what for begin, what in _NOT_DENSE.items() if name.startswith(begin)), None)
        if kind is not None:
            raise WeightsError(f"holds {kind}; only dense tensors are read: save the state_dict() of the plain network")
        raise WeightsError(_more_than_tensors(name))


def _is_storage_or_type(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return module in ("torch", "torch.cuda") and (
        (last.endswith("Storage") and not last.startswith("Q")) or isinstance(getattr(torch, last, None), torch.dtype)
    )


def _more_than_tensors(name: str) -> str:
    return (
        f"holds more than tensors ({quoted(name)}), and reading it would run code that came with it; ask its author "
        "for safetensors or for a plain state dict"
    )
