"""Packages of AOTInductor: a program compiled ahead into machine code of this kind of processor, as one file."""

import json
import platform
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from residuum.errors import ExportError, first_line, quoted

COMPILED_FOR = "compiled_for"  # entry of a file's note: what its machine code needs
# Where torch keeps the compiled parts of a package, and among them what was written beside the code.
_CODE, _BESIDE = "data/aotinductor/", "wrapper_metadata.json"


def processor() -> dict[str, str]:
    """What machine code that is compiled here needs to run: system, kind of processor, its vectors, and torch's."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": ".".join(torch.__version__.split(".")[:2]),
    }


def is_package(path: Path) -> bool:
    """Whether a .pt2 file holds compiled code, and not a program that torch runs step by step."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_CODE in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def write_package(program: ExportedProgram, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Compile the program with frozen weights into the file, with the texts beside it; raises `ExportError`."""
    from torch import _inductor

    options: dict[str, Any] = {"freezing": True, "aot_inductor.metadata": dict(metadata or {})}
    try:
        with warnings.catch_warnings(action="ignore"):  # advice: what goes wrong is raised or compared
            _inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # of the compiler's, of many kinds
        raise ExportError(f"torch cannot compile the network: {first_line(error)}") from error


def metadata_of(path: Path) -> dict[str, Any]:
    """What lies beside a package's code, read without opening that; raises `ExportError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            beside = next((name for name in archive.namelist() if _CODE in name and name.endswith(_BESIDE)), None)
            said = {} if beside is None else json.loads(archive.read(beside))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(f"{quoted(str(path))} is damaged: {first_line(error)}") from None
    return said if isinstance(said, dict) else {}


def check_processor(needed: Mapping[str, str], path: Path) -> None:
    """Raise `ExportError` where the code of a package is not for this machine: it would end the process."""
    here = processor()
    wider = needed.get("vectors") == "AVX2" and here["vectors"] == "AVX512"
    wrong = [name for name, value in here.items() if needed.get(name) != value and not (name == "vectors" and wider)]
    if wrong:
        raise ExportError(
            f"{quoted(str(path))} was compiled for {wrong[0]} {quoted(needed.get(wrong[0]))}, and here it is "
            f"{here[wrong[0]]}; export it here, or to pt2, which runs anywhere"
        )


def load_package(path: Path) -> Callable[[Tensor], Tensor]:
    """The compiled program; raises `ExportError`. A package holds machine code: open only those that you trust."""
    from torch import _inductor

    try:
        with warnings.catch_warnings(action="ignore"):
            run: Callable[[Tensor], Tensor] = _inductor.aoti_load_package(str(path))
    except Exception as error:
        raise ExportError(f"{quoted(str(path))} is no package that opens here: {first_line(error)}") from error
    return run
