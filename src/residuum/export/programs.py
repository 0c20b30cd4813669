"""Files that torch itself runs: programs of `torch.export`, packages of AOTInductor, and TorchScript."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from residuum.errors import ExportError, first_line
from residuum.export.inputs import Input, Normal, Scale
from residuum.runtimes.exported import NOTE
from residuum.runtimes.package import write_package
from residuum.runtimes.program import captured


def from_input(net: nn.Module, given: Input) -> nn.Module:
    """The network with what makes its input before it: from the file's input to logits."""
    if given.kind == "normalized":
        return net.eval()
    assert given.preprocessing is not None
    return nn.Sequential(Scale(given), Normal(given.preprocessing), net).eval()


def program_of(net: nn.Module, given: Input) -> ExportedProgram:
    """What `from_input` gives as a program whose free sizes are free; raises `ExportError`."""
    return captured(from_input(net, given), given.example, given.free)


def write_program(program: ExportedProgram, note: dict[str, Any], path: Path) -> None:
    """A program of `torch.export`, with the note as a file in it."""
    with warnings.catch_warnings(action="ignore"):  # of views among weights, which are whole in the file
        torch.export.save(program, path, extra_files={f"{NOTE}.json": json.dumps(note, sort_keys=True)})


def write_compiled(program: ExportedProgram, note: dict[str, Any], path: Path) -> None:
    """A package of AOTInductor, compiled here, with the note beside its code."""
    write_package(program, path, {NOTE: json.dumps(note, sort_keys=True)})


def torchscript(net: nn.Module, given: Input) -> torch.jit.ScriptModule:
    """TorchScript from the file's input to logits: what scales is compiled, for it looks at sizes, the rest is traced.

    torch has deprecated it; programs in C++ and on phones that load nothing else still need it. Raises `ExportError`.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # that it is deprecated
            trace: Any = torch.jit.trace
            layers: list[Any] = [trace(net.eval(), given.network.example, check_trace=False)]
            if given.kind != "normalized":
                assert given.preprocessing is not None
                pixels = torch.zeros(2, given.channels, *given.image_size, dtype=torch.uint8)
                normal = trace(Normal(given.preprocessing).eval(), pixels, check_trace=False)
                layers = [torch.jit.script(Scale(given).eval()), normal, *layers]
            return torch.jit.script(nn.Sequential(*layers).eval())
    except Exception as error:  # torch's own, of many kinds
        raise ExportError(f"torch cannot make TorchScript of the network: {first_line(error)}") from error


def write_torchscript(module: torch.jit.ScriptModule, note: dict[str, Any], path: Path) -> None:
    """A TorchScript file, with the note as a file in it."""
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(module, str(path), _extra_files={f"{NOTE}.json": json.dumps(note, sort_keys=True)})
