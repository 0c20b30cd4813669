"""Files that `residuum export` wrote, opened by what they say of themselves: uint8 images in, logits out."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from residuum.data.preparing import normalise
from residuum.errors import ConfigError, DataError, ExportError, first_line, quoted
from residuum.preprocessing import Preprocessing
from residuum.runtimes.package import COMPILED_FOR, check_processor, is_package, load_package, metadata_of

NOTE = "residuum"  # under which a file keeps what it says of itself
PRECISION = "precision"  # fp32 in the note of a file that is proved in that alone
PIXELS = "pixels"  # what lies between scaling and normalising: uint8 (N, C, *image_size)
Runtime = Literal["auto", "torch", "onnxruntime", "openvino"]
# What runs each kind of file, the usual one first.
RUNTIMES: dict[str, tuple[str, ...]] = {
    ".pt2": ("torch",), ".torchscript": ("torch",), ".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)
}  # fmt: skip
_NEWEST = 1  # version of the note


@dataclass(frozen=True, eq=False)
class Exported:
    """An exported network. Called with uint8 (N, H, W, C), it gives float32 logits (N, classes).

    Images have any size where `takes` is `image`, else the one of `image_size`, which may be free. `config` is that of
    the network, as a dict. Raises `DataError` for other images.
    """

    # the file
    path: Path
    # what runs it: torch, onnxruntime or openvino
    runtime: str
    # its pass: images in, logits out, unchecked
    run: Callable[[Tensor], Tensor]
    # what `export` wrote into it
    note: Mapping[str, Any] = field(repr=False)

    @property
    def takes(self) -> str:
        """`image`, `pixels` or `normalized`."""
        return str(self.note["input"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the network looks at."""
        height, width = self.note["image_size"]
        return height, width

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, where they are known."""
        return None if self.note["classes"] is None else tuple(self.note["classes"])

    @property
    def several_classes(self) -> bool:
        """Whether an image may be of several classes."""
        return bool(self.note["several_classes"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's config, by field."""
        return dict(self.note["config"])

    @property
    def channels(self) -> int:
        """Of an image."""
        return int(self.note["channels"])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What happens to an image before the network, within the file or before it."""
        said = self.note["preprocessing"]
        return None if said is None else Preprocessing.from_dict(said)

    def __call__(self, images: Tensor) -> Tensor:
        self._check(images)
        if self.note["order"] == "bgr":
            images = images.flip(3)
        if self.takes != "normalized":
            return self.run(images.contiguous())
        how = self.preprocessing
        assert how is not None
        return self.run(normalise(images.permute(0, 3, 1, 2), how).contiguous())

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != self.channels or not images.numel():
            raise DataError(
                f"images are {images.dtype} {tuple(images.shape)}; {quoted(str(self.path))} takes torch.uint8 "
                f"(N, H, W, {self.channels}), at least one"
            )
        free = self.takes == "image" or self.note["dynamic_size"]
        if not free and tuple(images.shape[1:3]) != self.image_size:
            raise DataError(
                f"images are {images.shape[1]} x {images.shape[2]}; {quoted(str(self.path))} takes "
                f"{self.image_size[0]} x {self.image_size[1]}: scale them before, or export with input image"
            )
        if self.takes == "normalized" and self.preprocessing is None:
            raise DataError(f"{quoted(str(self.path))} takes normalised tensors and does not say how; call its run")


def is_exported(path: str | Path) -> bool:
    """Whether a name ends as an exported file's does."""
    return Path(path).suffix in RUNTIMES


def opened(path: str | Path, *, runtime: Runtime = "auto", threads: int | None = None) -> Exported:
    """An exported file, ready to run on the CPU by `runtime`, its own where that is auto.

    Raises `ConfigError` for a runtime that there is not or that does not run such files, `ExportError` for a file that
    cannot be read or is not of `residuum export`, `MissingExtraError`.
    """
    path = Path(path)
    if runtime not in get_args(Runtime):
        raise ConfigError(f"runtime is {quoted(runtime)}; it must be one of {', '.join(get_args(Runtime))}")
    possible = RUNTIMES.get(path.suffix)
    if possible is None:
        raise ConfigError(f"{quoted(str(path))} does not end as exported files do: {', '.join(RUNTIMES)}")
    name = possible[0] if runtime == "auto" else runtime
    if name not in possible:
        raise ConfigError(f"{name} does not run {path.suffix} files; take {' or '.join(possible)}, or auto")
    if not path.is_file():
        raise ExportError(f"there is no file {quoted(str(path))}")
    if path.suffix == ".pt2":
        note, run = _package(path) if is_package(path) else _program(path)
    elif path.suffix == ".torchscript":
        note, run = _torchscript(path)
    elif path.suffix == ".onnx":
        note, run = _onnx(path, name, threads)
    else:
        note, run = _openvino(path, threads)
    return Exported(path, name, run, note)


def _onnx(path: Path, runtime: str, threads: int | None) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    from residuum.runtimes.onnx import OnnxSession

    session = OnnxSession(path, threads=threads)
    note = _read(session.metadata.get(NOTE), path)
    if runtime == "onnxruntime":
        return note, session
    from residuum.runtimes.openvino import OpenVinoSession

    if note["input"] == "image":
        raise ExportError(
            f"OpenVINO ignores antialias in ONNX (openvino#35893), so it would scale images wrongly; export "
            f"{quoted(str(path))} with --to openvino"
        )
    return note, OpenVinoSession(path, precision="fp32", threads=threads)


def _openvino(path: Path, threads: int | None) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    from residuum.runtimes.openvino import OpenVinoSession, metadata, read_model

    note = _read(metadata(read_model(path), NOTE), path)
    return note, OpenVinoSession(path, precision=note.get(PRECISION, "auto"), threads=threads)


def _program(path: Path) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    return _by_torch(path, lambda said: torch.export.load(path, extra_files=said).module())


def _package(path: Path) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    note = _read(metadata_of(path).get(NOTE), path)
    check_processor(note.get(COMPILED_FOR, {}), path)
    return note, _without_gradients(load_package(path))


def _torchscript(path: Path) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    def load(said: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings(action="ignore"):  # that TorchScript is deprecated
            return torch.jit.load(str(path), map_location="cpu", _extra_files=said)  # type: ignore[no-any-return, no-untyped-call]

    return _by_torch(path, load)


def _by_torch(
    path: Path, load: Callable[[dict[str, Any]], Callable[[Tensor], Tensor]]
) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """What `load` opens, which fills in the file's note; asked for the stored answers of another torch."""
    said: dict[str, Any] = {f"{NOTE}.json": ""}
    try:
        module = load(said)
    except Exception as error:  # torch's own, of many kinds
        raise ExportError(f"torch {torch.__version__} cannot open {quoted(str(path))}: {first_line(error)}") from None
    text = said[f"{NOTE}.json"]  # of TorchScript in bytes
    note = _read((text.decode("utf-8", "replace") if isinstance(text, bytes) else text) or None, path)
    run = _without_gradients(module)
    _self_test(note, run, path)
    return note, run


def _without_gradients(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return run


def _self_test(note: Mapping[str, Any], run: Callable[[Tensor], Tensor], path: Path) -> None:
    """Raise `ExportError` where another torch than the one that wrote a program gives other answers."""
    written, test = str(note["versions"].get("torch")), note.get("self_test")
    if test is None or _minor(written) == _minor(torch.__version__):
        return
    shape = (2, *test["size"], note["channels"])
    images = self_test_images(shape)
    if note["input"] == "normalized":
        images = images.permute(0, 3, 1, 2).float() / 255
    expected = torch.tensor(test["logits"])
    try:
        difference = float((run(images) - expected).abs().amax() / expected.abs().amax().clamp_min(1e-30))
    except Exception as error:
        raise ExportError(
            f"{quoted(str(path))} was written by torch {written}, and torch {torch.__version__} cannot run it: "
            f"{first_line(error)}; export it anew"
        ) from None
    if not difference <= 1e-3:
        raise ExportError(
            f"{quoted(str(path))} was written by torch {written}, and torch {torch.__version__} answers otherwise, by "
            f"{difference:.2g} of the largest; export it anew"
        )


def self_test_images(shape: tuple[int, ...]) -> Tensor:
    """Images of no matter what, the same everywhere: uint8 of the shape."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count, dtype=torch.int64) * 2_654_435_761 % 2**32) >> 24).to(torch.uint8).view(shape)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _read(text: object, path: Path) -> dict[str, Any]:
    """What a file says of itself; raises `ExportError` where it says nothing, or nothing that can be understood."""
    if not isinstance(text, str):
        raise ExportError(f"{quoted(str(path))} was not written by residuum export; it does not say what it takes")
    try:
        note = json.loads(text)
        if note["version"] > _NEWEST:
            raise ExportError(f"{quoted(str(path))} was written by a newer residuum; update")
        wanted = ("input", "image_size", "classes", "several_classes", "config", "channels", "order", "dynamic_size")
        missing = [name for name in (*wanted, "preprocessing", "versions") if name not in note]
        if missing:
            raise ValueError(f"it does not say {missing[0]}")
        if note["preprocessing"] is not None:
            Preprocessing.from_dict(note["preprocessing"])
        if note["input"] not in ("image", "pixels", "normalized") or len(note["image_size"]) != 2:
            raise ValueError("its input is unknown")
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"what {quoted(str(path))} says of itself is damaged: {first_line(error)}") from None
    return dict(note)
