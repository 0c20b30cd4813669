"""A network as a file for another runtime, which is given out once it has been proved to answer as the network does."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import residuum
from residuum.errors import ConfigError, DeviceError, ExportError, quoted
from residuum.export import onnx, openvino, programs
from residuum.export.inputs import Input, Kind, Order
from residuum.export.int8.gate import Quantized
from residuum.export.proof import HALF, Proof, batched, made_images, prove_file
from residuum.extras import version_of
from residuum.files import place_beside, replaceable, write_whole
from residuum.inference.engines import TOLERANCE, refuse_engine
from residuum.inference.optimize import FoldedResNet, folded_network
from residuum.inference.surgery import copied, own_hooks
from residuum.nn.resnet import ResNet
from residuum.runtimes.exported import PRECISION, self_test_images
from residuum.runtimes.onnx import OnnxSession, onnx_model
from residuum.runtimes.openvino import OpenVinoSession, openvino_model
from residuum.runtimes.package import COMPILED_FOR, processor
from residuum.runtimes.program import captured
from residuum.weights.files import digest

Fill = Callable[[Path], object]
Precision = Literal["auto", "fp32"]
Format = Literal["onnx", "openvino", "aoti", "pt2", "torchscript"]
# Of two endings that fit, the first is meant.
ENDINGS: dict[str, str] = {
    "onnx": ".onnx", "openvino": ".xml", "aoti": ".aoti.pt2", "pt2": ".pt2", "torchscript": ".torchscript"
}  # fmt: skip
_LIBRARIES = {"onnx": ("torch", "onnx", "onnxscript"), "openvino": ("torch", "openvino")}


def export(
    model: ResNet,
    path: str | Path,
    *,
    input: Kind | None = None,  # noqa: A002
    image_size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    order: Order = "rgb",
    opset: int | None = None,
    half: bool = False,
    precision: Precision = "auto",
    images: Sequence[Tensor] = (),
    quantized: Quantized | None = None,
) -> Proof:
    """Write the network for another runtime; the ending of `path` says which.

    They are .onnx, .xml (OpenVINO), .pt2 (a program of torch.export), .aoti.pt2 (the same compiled by AOTInductor for
    this kind of processor, which needs a C++ compiler) and .torchscript.

    The file takes what `input` says: decoded `image`s of any size, uint8 (N, H, W, C), which it scales, crops and
    normalises as evaluation does (the default where the network says its preprocessing); `pixels` of the size that the
    network looks at, uint8 too (the default for .aoti.pt2, which takes no `image`s); or `normalized` tensors, float32
    (N, C, H, W). It gives float32 logits. N is free; `dynamic_size` frees height and width of the last two.
    `image_size` is the preprocessing's where left out; the file says that images are scaled to it. `order` is that of
    the channels of uint8 images. `opset` is for ONNX; `half` stores OpenVINO's weights in fp16. OpenVINO takes bf16 by
    itself where the processor has it, which is proved too; a file of `precision` fp32 is proved in fp32 alone and says
    so: this package runs it in fp32, and so do server folders, other programs must ask for it. `quantized` is the
    network in 8-bit integers, as `residuum.export.int8.quantize` gave it for this runtime: its file is compared with
    it, for how far it is from the network itself stands in its report, which goes into the file.

    The network is taken as in evaluation, in fp32, and left as it was. What was written is opened by its own runtime in
    a new process and compared with the network on `images`, decoded, uint8 (H, W, C), and on made-up ones of several
    sizes. Only a file that passes gets its name; beside it lies the proof, its name with .proof.json.

    Raises `ConfigError` for what cannot be exported so, `ExportError` where the runtime cannot take the network or
    answers otherwise, `MissingExtraError`.
    """
    path = Path(path)
    to = format_of(path)
    if to is None:
        raise ConfigError(f"{quoted(str(path))} must end in {', '.join(ENDINGS.values())}: that says for which runtime")
    if opset is not None and to != "onnx":
        raise ConfigError(f"an opset is ONNX's, and {path.suffix} has none; leave it out")
    if half and to != "openvino":
        raise ConfigError("half stores the weights of OpenVINO files in fp16; leave it out for others")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {quoted(precision)}; it must be one of {', '.join(get_args(Precision))}")
    if precision != "auto" and to != "openvino":
        raise ConfigError(f"{path.suffix} files are computed in fp32 by themselves; leave precision out")
    if to == "aoti":
        refuse_engine("aoti", torch.device("cpu"), "fp32")
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {quoted(str(path))}: there is no such folder")
    given = _input(model, to, input, image_size, dynamic_size, order)
    if quantized is not None:
        _check_quantized(quantized, given, to, opset, half)
    how = given.preprocessing if given.kind == "image" else None
    if to == "onnx" and how is not None and how.interpolation == "nearest":
        raise ConfigError(
            "preprocessing scales by nearest, which ONNX Runtime rounds otherwise; export to openvino or pt2, or with "
            "input pixels, and scale before"
        )
    if to == "aoti" and how is not None:
        raise ConfigError("compiled code takes images of one size; export with input pixels, and scale before")
    _check_images(images, given)
    with torch.inference_mode(False), torch.no_grad():
        network = _plain(model)
        net = folded_network(network, "fp32", plain=True)
        batches = [*batched(images), *made_images(given)]
        note = note_of(model, given, to, net)
        if precision != "auto":
            note[PRECISION] = precision
        reference: nn.Module = network
        if quantized is None:
            fill = _WRITERS[to](net, given, note, opset, half)
        else:
            note["int8"] = quantized.report.to_dict()
            fill, reference = _in_integers(quantized, given, note)
        allowed = HALF if half else INTEGERS if quantized is not None else TOLERANCE["fp32"]
        return given_out(path, fill, lambda partial: prove_file(partial, reference, given, batches, allowed, note))


def format_of(path: Path) -> Format | None:
    """For which runtime a file of this name is; None where its ending does not say."""
    return next((name for name in get_args(Format) if path.name.endswith(ENDINGS[name])), None)


def usual_input(model: ResNet, to: Format) -> Kind:
    """What a file takes where nothing else is asked for."""
    if model.preprocessing is None:
        return "normalized"
    return "pixels" if to == "aoti" else "image"


def _input(
    model: ResNet, to: Format, kind: Kind | None, image_size: tuple[int, int] | None, dynamic_size: bool, order: Order
) -> Input:
    if not isinstance(model, ResNet):
        copied(model)  # which says what it is
    how = model.preprocessing
    if image_size is not None and (
        len(image_size) != 2 or not all(isinstance(side, int) and side >= 1 for side in image_size)
    ):
        raise ConfigError(f"image_size is {quoted(image_size)}; it must be height and width, such as (224, 224)")
    if image_size is None and how is None:
        raise ConfigError("the network does not say at what size it looks; give image_size, such as (224, 224)")
    size = image_size or (how.image_size if how is not None else (0, 0))
    kind = kind or usual_input(model, to)
    if how is not None and size != how.image_size and kind == "image":
        raise ConfigError(
            f"image_size is {size}, but images are scaled to {how.image_size} for this network; change "
            "model.preprocessing, or export with input pixels"
        )
    if how is not None and kind != "image":
        how = replace(how, image_size=(size[0], size[1]))  # whoever runs the file scales images to what it takes
    return Input(kind, model.config.in_channels, (size[0], size[1]), how, order, dynamic_size)


def _check_images(images: Sequence[Tensor], given: Input) -> None:
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != given.channels or not image.numel():
            raise ConfigError(
                f"an image is {image.dtype} {tuple(image.shape)}; the proof takes torch.uint8 (H, W, {given.channels})"
            )
        if given.kind != "image" and tuple(image.shape[:2]) != given.image_size and not given.dynamic_size:
            raise ConfigError(
                f"an image is {tuple(image.shape[:2])}; with input {given.kind} it must be {given.image_size}"
            )


def _plain(model: ResNet) -> ResNet:
    """A copy in fp32 on the CPU, in evaluation; raises `ConfigError` and `DeviceError` for what no file can hold."""
    network = copied(model)
    hooks = own_hooks(network)
    if hooks:
        raise ConfigError(
            f"{hooks[0]} has a forward hook, and a file calls none; remove it, or make it a layer of the network"
        )
    network = network.to("cpu", torch.float32)
    bad = next((name for name, t in network.state_dict().items() if not t.isfinite().all()), None)
    if bad is not None:
        raise ConfigError(f"{quoted(bad)} holds NaN or infinity; an export of it could not be compared")
    return network


def note_of(model: ResNet, given: Input, to: str, net: nn.Module) -> dict[str, Any]:
    """What a file says of itself."""
    how = given.preprocessing
    note: dict[str, Any] = {
        "version": 1,
        "input": given.kind,
        "order": given.order,
        "channels": given.channels,
        "image_size": list(given.image_size),
        "dynamic_size": given.dynamic_size,
        "classes": None if model.classes is None else list(model.classes),
        "several_classes": model.several_classes,
        "config": model.config.to_dict(),
        "preprocessing": None if how is None else how.to_dict(),
        "weights_sha256": digest({name: tensor.cpu() for name, tensor in model.state_dict().items()}),
        "versions": {
            "residuum": residuum.__version__,
            **{name: version_of(name) or "unknown" for name in _LIBRARIES.get(to, ("torch",))},
        },
    }
    if to in ("pt2", "torchscript"):
        note["self_test"] = _self_test(net, given)
    if to == "aoti":
        note[COMPILED_FOR] = processor()
    return note


def _self_test(net: nn.Module, given: Input) -> dict[str, Any]:
    size = (61, 45) if given.kind == "image" else given.image_size
    images = self_test_images((2, *size, given.channels))
    if given.kind == "normalized":
        images = images.permute(0, 3, 1, 2).float() / 255
    return {"size": list(size), "logits": programs.from_input(net, given)(images).tolist()}


# -- int8 --------------------------------------------------------------------------------------------------------------

# A sum in another order may round to the next integer. What is left out or swapped is far more.
INTEGERS = 0.03


class _Session(nn.Module):
    """A model that another runtime runs, as a module: normalised images -> logits."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


def _check_quantized(quantized: Quantized, given: Input, to: str, opset: int | None, half: bool) -> None:
    if quantized.report.runtime != to:
        raise ConfigError(f"the network was quantized for {quantized.report.runtime}, and {ENDINGS[to]} is for {to}")
    if given.dynamic_size or opset is not None or half:
        name = "dynamic_size" if given.dynamic_size else "opset" if opset is not None else "half"
        raise ConfigError(f"{name} does not go with a network in 8-bit integers; leave it out")


def _in_integers(quantized: Quantized, given: Input, note: dict[str, Any]) -> tuple[Fill, nn.Module]:
    """What writes the file, and the network alone in its own runtime, with which the file is compared."""
    if quantized.report.runtime == "onnx":
        session = OnnxSession(quantized.model.SerializeToString())
        model = onnx.with_input(copy.deepcopy(quantized.model), given)
        return (lambda partial: onnx.write(model, note, partial)), _Session(session)
    whole = openvino.with_input(quantized.model.clone(), given)
    run = OpenVinoSession(quantized.model, precision="fp32")
    return (lambda partial: openvino.write(whole, note, partial)), _Session(run)


# -- formats -----------------------------------------------------------------------------------------------------------


def captured_network(net: nn.Module, given: Input) -> ExportedProgram:
    """The network alone, float32 (N, C, H, W) -> logits, with the sizes that the input leaves free."""
    return captured(net, given.network.example, given.network.free)


def _to_onnx(net: FoldedResNet, given: Input, note: dict[str, Any], opset: int | None, half: bool) -> Fill:
    model = onnx.with_input(onnx_model(captured_network(net, given), opset=opset), given, opset)
    return lambda partial: onnx.write(model, note, partial)


def _to_openvino(net: FoldedResNet, given: Input, note: dict[str, Any], opset: int | None, half: bool) -> Fill:
    model = openvino.with_input(openvino_model(captured_network(net, given)), given)
    return lambda partial: openvino.write(model, note, partial, half=half)


def _to_pt2(net: FoldedResNet, given: Input, note: dict[str, Any], opset: int | None, half: bool) -> Fill:
    program = programs.program_of(net, given)
    return lambda partial: programs.write_program(program, note, partial)


def _to_aoti(net: FoldedResNet, given: Input, note: dict[str, Any], opset: int | None, half: bool) -> Fill:
    program = programs.program_of(net, given)
    return lambda partial: programs.write_compiled(program, note, partial)


def _to_torchscript(net: FoldedResNet, given: Input, note: dict[str, Any], opset: int | None, half: bool) -> Fill:
    module = programs.torchscript(net, given)
    return lambda partial: programs.write_torchscript(module, note, partial)


_WRITERS: dict[str, Callable[[FoldedResNet, Input, dict[str, Any], int | None, bool], Fill]] = {
    "onnx": _to_onnx,
    "openvino": _to_openvino,
    "pt2": _to_pt2,
    "aoti": _to_aoti,
    "torchscript": _to_torchscript,
}


def given_out(path: Path, fill: Fill, prove: Callable[[Path], Proof]) -> Proof:
    """Let `fill` write the file beside its place, `prove` it, and only then give it its name, and the proof its own.

    OpenVINO's weights, NAME.bin, come before the .xml that wants them. Whatever fails, nothing half-written is left,
    and a file that was there before stays. Where a link stands, what it leads to is replaced. Raises `ExportError` for
    a folder, pipe or device in the place, before anything is written, and for what the file system refuses.
    """
    names = (path.name, f"{path.name}.proof.json", *([f"{path.stem}.bin"] if path.suffix == ".xml" else []))
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                replaceable(path.with_name(name), ExportError)
            folder = stack.enter_context(place_beside(path, folder=True))
        except OSError as error:
            raise ExportError(f"cannot write {quoted(str(path))}: {error.strerror}") from None
        partial = folder / path.name
        try:
            fill(partial)
            proof = prove(partial)
            (folder / f"{path.name}.proof.json").write_text(json.dumps(_statement(partial, proof), indent=2) + "\n")
            parts = sorted(folder.iterdir(), key=lambda part: part.name == path.name)  # the file itself at last
            for part in parts:
                with part.open("rb") as file:
                    os.fsync(file.fileno())
            for part in parts:
                _move(part, path.parent / part.name)
        except (OSError, RuntimeError) as error:
            if isinstance(error, (ExportError, DeviceError)):
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ExportError(
                f"cannot write {quoted(str(path))}: {quoted(reason, 200)}; free space, or choose another folder"
            ) from None
        return proof


def _move(part: Path, place: Path) -> None:
    if place.is_symlink():  # which may lead to another disk
        write_whole(place, lambda partial: shutil.copyfile(part, partial), ExportError)
    else:
        part.replace(place)


def _statement(path: Path, proof: Proof) -> dict[str, Any]:
    """The proof as it lies beside the file, which it names by its digest."""
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **proof.to_dict()}
