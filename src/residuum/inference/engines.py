"""What can run a folded network in place of torch's eager mode: compiled code of torch's own, or another runtime."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from residuum.devices import choose_precision
from residuum.errors import ConfigError, DeviceError, ExportError, first_line, quoted
from residuum.files import write_whole
from residuum.inference.surgery import own_hooks
from residuum.nn.stochastic_depth import StochasticDepth

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Engine = Literal["auto", "eager", "inductor", "aoti", "onnxruntime", "openvino"]
Run = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
# What engines of other makers need; torch's own need a C++ compiler on a CPU.
LIBRARIES = {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}
EXTRAS = {"onnxruntime": "export", "openvino": "openvino"}
TORCHS = ("inductor", "aoti")
# The largest difference of an output, as a share of the largest output, that a precision allows.
TOLERANCE = {"fp32": 1e-5, "bf16": 0.03, "fp16": 0.03}


def candidates(device: torch.device, precision: str) -> tuple[str, ...]:
    """The engines that `auto` measures: eager, with the runtimes that are installed, else with torch's compiler.

    Compiling takes a minute, and a runtime was faster wherever both were measured.
    """
    found: list[str] = []
    if device.type == "cpu":
        found = [name for name, libraries in LIBRARIES.items() if all(find_spec(library) for library in libraries)]
        if precision == "bf16":  # ONNX Runtime computes none on CPUs
            found = [name for name in found if name != "onnxruntime"]
    if not found and (device.type == "cuda" or compiler() is not None):
        found = ["inductor"]
    return ("eager", *found)


def compiler() -> str | None:
    """The C++ compiler that torch takes, or None where there is none."""
    named = os.environ.get("CXX")
    return next((name for name in (named, "g++", "clang++") if name and shutil.which(name)), None)


def refuse_engine(engine: str, device: torch.device, precision: str) -> None:
    """Raise `DeviceError` where an engine does not run on the device or in the precision, before anything is made."""
    if device.type != "cpu" and engine in (*LIBRARIES, "aoti"):
        raise DeviceError(
            f"engine {engine!r} computes on CPUs here and the network is on {device}; move it, or take inductor"
        )
    if engine == "onnxruntime" and precision == "bf16":
        raise DeviceError("ONNX Runtime computes no bf16 on CPUs; ask for fp32 or auto, or take another engine")
    if engine == "openvino" and precision == "bf16" and choose_precision("auto", device)[0] != "bf16":
        raise DeviceError("OpenVINO computes no bf16 on this processor; ask for fp32 or auto")
    if engine in TORCHS and device.type == "cpu" and compiler() is None:
        raise DeviceError(f"engine {engine!r} needs a C++ compiler such as g++, and there is none; take another engine")


def why_eager_alone(network: nn.Module) -> str | None:
    """Why only eager mode runs a network as it is, or None where others do."""
    hooks = own_hooks(network)
    if hooks:
        return f"{hooks[0]} has a forward hook, and only engine 'eager' calls one"
    training = next((name for name, module in network.named_modules() if _trains(module)), None)
    if training is not None:
        return f"{quoted(training)} is in training, and only engine 'eager' runs that"
    return None


def _trains(module: nn.Module) -> bool:
    """Whether a module computes otherwise for being in training, as a new layer may be by oversight."""
    if not module.training:
        return False
    known = type(module).__module__.startswith(("torch.nn.modules.", "residuum.nn."))
    return not known or isinstance(module, _NormBase | _DropoutNd | StochasticDepth | nn.RReLU)


def program_of(net: nn.Module, channels: int, size: tuple[int, int]) -> "ExportedProgram":
    """A network as a program for any number of images of one size; raises `ExportError`."""
    from residuum.runtimes.program import captured

    device = next((t.device for t in net.parameters()), torch.device("cpu"))
    images = torch.zeros(2, channels, *size, device=device, dtype=torch.float32)  # a batch of 1 would become fixed
    return captured(net, images, (0,))


def onnxruntime_run(program: "ExportedProgram", threads: int) -> tuple[Run, str]:
    """The program in ONNX Runtime, and the precision that it computes in."""
    from residuum.runtimes.onnx import OnnxSession, onnx_model

    session = OnnxSession(onnx_model(program).SerializeToString(), threads=threads)
    return session, session.precision


def openvino_run(program: "ExportedProgram", threads: int, precision: str) -> tuple[Run, str]:
    """The program in OpenVINO, and the precision that it computes in."""
    from residuum.runtimes.openvino import OpenVinoSession, openvino_model

    session = OpenVinoSession(openvino_model(program), precision=precision, threads=threads)  # type: ignore[arg-type]
    return session, session.precision


class CompiledRun:
    """A program through `torch.compile`: compiled for each size of image and the batches that it is first given.

    A batch that is shorter than one it was compiled for is filled up to that and costs as much, for to compile takes a
    minute; a longer one is compiled for.
    """

    def __init__(self, program: "ExportedProgram") -> None:
        on_cpu = all(tensor.device.type == "cpu" for tensor in program.state_dict.values())
        # With frozen weights they are laid out ahead, as FusedConv does.
        options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True} if on_cpu else {}
        # The program's module has code of its own, which counts its compilations apart from those of other networks.
        self._run = torch.compile(program.module(), dynamic=False, options=options)
        self.batches: dict[Shape, list[int]] = {}  # (C, H, W) to numbers of images, the smallest first

    def __call__(self, images: Tensor) -> Tensor:
        count, rest = len(images), tuple(images.shape[1:])
        batches = self.batches.setdefault(rest, [])
        size = next((size for size in batches if size >= count), count)
        if size > count:
            images = torch.cat([images, images.new_zeros(size - count, *rest)])
        try:
            with torch.no_grad():
                found: Tensor = self._run(images.contiguous())[:count]
        except Exception as error:  # of the compiler's, of many kinds
            raise ExportError(f"torch cannot compile the network: {first_line(error)}") from error
        self.batches[rest] = sorted({*batches, size})
        return found


def aoti_run(program: "ExportedProgram", package: Path | None) -> Run:
    """The program as a package of AOTInductor, from the file `package` where it is there, else written to it.

    Without a name it is a temporary file, which is gone once it is loaded.
    """
    from residuum.runtimes.package import load_package, write_package

    if package is not None:
        if not package.exists():
            write_whole(package, lambda partial: write_package(program, partial), ExportError)
        return load_package(package)
    with tempfile.TemporaryDirectory(prefix="residuum-") as folder:
        path = Path(folder) / "network.pt2"
        write_package(program, path)
        return load_package(path)


def difference(run: Run, network: Run, batches: Sequence[Tensor]) -> float:
    """The largest difference of an output over batches, as a share of the largest; infinite where it is none."""
    worst = 0.0
    for images in batches:
        with torch.autocast(images.device.type, enabled=False):
            expected, got = network(images).float(), run(images).float()
        if got.shape != expected.shape or not (expected.isfinite().all() and got.isfinite().all()):
            return float("inf")
        largest = expected.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        worst = max(worst, float((got - expected).abs().amax() / largest))
    return worst


def made_up(shape: Shape, device: torch.device, counts: Sequence[int]) -> list[Tensor]:
    """Batches of made-up images, the same in every run, on the device."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = [(count, *shape[1:]) for count in counts]
    return [torch.randn(s, generator=generator, device="cpu", dtype=torch.float32).to(device) for s in shapes]


def check_shapes(shapes: object, channels: int) -> tuple[Shape, ...]:
    """The shapes of batches that were asked for; raises `ConfigError` for what is none, or for other channels."""
    wanted = (
        f"shapes is {quoted(shapes)}; it must be a list of (N, {channels}, H, W), such as [(8, {channels}, 224, 224)]"
    )
    if not isinstance(shapes, list | tuple) or not shapes:
        raise ConfigError(wanted)
    for shape in shapes:
        whole = isinstance(shape, list | tuple) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)
        if not whole or shape[1] != channels:
            raise ConfigError(wanted)
    return tuple(tuple(shape) for shape in shapes)
