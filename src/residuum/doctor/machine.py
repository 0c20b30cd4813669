"""What the machine has: processor, threads, memory, accelerators, and what the process is run with."""

import contextlib
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from residuum.bench.machine import cpu_features
from residuum.devices import (
    choose_precision,
    container_memory,
    container_processors,
    free_memory,
    pick_device,
    processor,
    usable_cores,
)
from residuum.errors import DeviceError
from residuum.files import cache_folder
from residuum.inference.engines import compiler
from residuum.units import show_size

# Instructions that the speed of networks hangs on, as Linux names them: first those of x86, then those of ARM.
_FEATURES = (
    ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    ("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
# What changes how the package runs, and is safe to show.
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "RESIDUUM_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "CXX",
    "PYTHONPATH",
)  # fmt: skip
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_OPENMP = ("libiomp5", "libomp", "libgomp")
LEAST_SHARED = 2**29  # bytes; a container has 64 MB unless it is told otherwise, which a few batches of images fill
LEAST_FREE = 2**30  # bytes of memory and of disk, below which little can be trained or downloaded


def describe() -> dict[str, Any]:
    """The machine in plain values: sizes in bytes, versions as text, None for what is not known or not there."""
    device = pick_device("auto")
    precision, why = choose_precision("auto", device)
    cache = cache_folder()
    return {
        "system": " ".join(part for part in (platform.system(), platform.release(), *platform.libc_ver()) if part),
        "processor": processor(),
        "instructions": _instructions(),
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
        "precision": precision,
        "precision_why": why,
        "devices": _accelerators(),
        "cuda": torch.version.cuda,
        "nvidia_driver": _nvidia_driver(),
        "threads": {
            "torch": torch.get_num_threads(),
            "torch_between_operators": torch.get_num_interop_threads(),
            "processors": os.cpu_count(),
            "allowed": usable_cores(),
            "container": container_processors(),
            "openmp": _loaded(_OPENMP),
        },
        "memory": {
            "total": psutil.virtual_memory().total,
            "container": container_memory(),
            "free": _free(),
            "allocator": _loaded(_ALLOCATORS) or platform.libc_ver()[0] or None,
            "huge_pages": _huge_pages(),
            "shared": _shared(),
        },
        "compiler": _compiler(),
        "cache": {"folder": str(cache), "bytes": _size(cache), "free": _free_disk(cache), "writable": _writable(cache)},
        "environment": {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    }


def problems(found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a machine that `describe` gave, each as a sentence that ends with what to do."""
    threads, memory, cache = found["threads"], found["memory"], found["cache"]
    usable = [n for n in (threads["allowed"], threads["container"] and math.ceil(threads["container"])) if n]
    if usable and threads["torch"] > min(usable):
        yield (
            f"torch computes with {threads['torch']} threads, but may use {min(usable)} processors here, which is "
            f"slower than as many threads: set OMP_NUM_THREADS={min(usable)}"
        )
    if memory["free"] is not None and memory["free"] < LEAST_FREE:
        yield f"only {show_size(memory['free'])} of memory are free: end other programs, or raise the container's limit"
    if memory["shared"] is not None and memory["shared"] < LEAST_SHARED:
        yield (
            f"/dev/shm holds only {show_size(memory['shared'])}, and worker processes hand images over there: start "
            "the container with --shm-size=2g, or train with --workers 0"
        )
    if not cache["writable"]:
        yield f"the cache folder {cache['folder']} cannot be written: set RESIDUUM_CACHE to another folder"
    elif cache["free"] is not None and cache["free"] < LEAST_FREE:
        yield (
            f"only {show_size(cache['free'])} are free where the cache folder {cache['folder']} is: make room, or set "
            "RESIDUUM_CACHE to another folder"
        )
    if found["nvidia_driver"] is not None and not any(d["name"].startswith("cuda") for d in found["devices"]):
        why = (
            f"torch was built for CUDA {found['cuda']} and finds no card: compare the driver's version and "
            "CUDA_VISIBLE_DEVICES"
            if found["cuda"]
            else "this torch was built without CUDA: install another, as https://pytorch.org/get-started shows"
        )
        yield f"the NVIDIA driver {found['nvidia_driver']} is there, but {why}"


def _instructions() -> dict[str, bool]:
    """Sets of instructions of the processor's family, and whether it has each; nothing where that is not known."""
    for family in _FEATURES:
        there = cpu_features(family)
        if there:
            return {name: name in there for name in family}
    return {}


def _accelerators() -> list[dict[str, Any]]:
    """Accelerators that torch can use: the name of the device, what it is, its memory in bytes where that is known."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return []
    found = []
    for index in range(torch.accelerator.device_count()):
        name, what, memory = f"{kind.type}:{index}", None, None
        if kind.type == "cuda":
            properties = torch.cuda.get_device_properties(index)
            what, memory = f"{properties.name}, {properties.major}.{properties.minor}", properties.total_memory
        found.append({"name": name, "what": what, "memory": memory})
    return found


def _nvidia_driver() -> str | None:
    version = Path("/sys/module/nvidia/version")
    try:
        return version.read_text().strip()
    except (OSError, ValueError):
        return None


def _free() -> int | None:
    try:
        return free_memory(torch.device("cpu"))
    except DeviceError:
        return None


def _loaded(libraries: tuple[str, ...]) -> str | None:
    """Which of some libraries are in this process, as Linux says it."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return None
    files = {line.rpartition("/")[2] for line in maps.splitlines() if ".so" in line}
    return ", ".join(sorted({name for name in libraries for file in files if name in file})) or None


def _huge_pages() -> str | None:
    """What the system does of itself: `always`, `madvise` (for programs that ask, as this one does) or `never`."""
    try:
        said = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except (OSError, ValueError):
        return None
    return said.partition("[")[2].partition("]")[0] or None


def _compiler() -> str | None:
    """The C++ compiler that torch takes, with its version."""
    name = compiler()
    if name is None:
        return None
    said = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run([name, "-dumpversion"], capture_output=True, text=True, check=False, timeout=5)
        said = asked.stdout.strip()
    return f"{name} {said}".rstrip()


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where it is not there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 (many files)
    return total


def _shared() -> int | None:
    """Bytes that processes can share with one another, as Linux gives them; None on other systems."""
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None


def _free_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is, or would be."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _writable(folder: Path) -> bool:
    """Whether a folder can be written, or made where it is not there."""
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
