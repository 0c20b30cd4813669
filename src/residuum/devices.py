"""Where and in which precision to compute, what memory there is, and what a process is set to before it trains."""

import ctypes
import mmap
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import psutil
import torch

from residuum.errors import ConfigError, DeviceError, quoted

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Instructions that multiply matrices of bf16, as `torch.cpu.get_capabilities` names them, best first. A processor
# without them computes bf16 by way of fp32, which takes longer than fp32 alone.
_CPU_BF16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "sve_bf16": "SVE", "bf16": "NEON"}


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU; raises `DeviceError` for a device that is not there."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    there = ["cpu"]
    if accelerator is not None:
        there += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):  # a number too long for an index is a ValueError
        raise DeviceError(f"{quoted(name)} is not the name of a device; this machine has {', '.join(there)}") from None
    if str(device) not in there:
        raise DeviceError(f"there is no device {quoted(name)} here; this machine has {', '.join(there)}")
    return device


# -- precision ---------------------------------------------------------------------------------------------------------


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """fp32, bf16 or fp16 for a device, and a sentence that says why; `auto` is bf16 where the device computes it.

    What a device computes is read, never timed: the same machine always gives the same answer. Raises `ConfigError`
    for a precision that there is not, `DeviceError` for one that the device has not.
    """
    if asked not in get_args(Precision):
        raise ConfigError(f"precision is {quoted(asked)}; it must be one of {', '.join(get_args(Precision))}")
    if asked == "auto":
        computes, why = _computes_bf16(device)
        return "bf16" if computes else "fp32", why
    if asked == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 is for accelerators; on a CPU ask for bf16, fp32 or auto")
    if asked == "bf16" and device.type == "cuda":
        computes, why = _computes_bf16(device)
        if not computes:
            raise DeviceError(f"{why}; ask for fp16, fp32 or auto")
    return asked, "as asked"


def timed_in(dtype: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The type of autocast in which a step is timed that is to run in `dtype`: None, fp32, where the device does not
    compute that. What takes its place there is a hundred times slower, and says nothing of other devices.
    """
    return None if dtype == torch.bfloat16 and not _computes_bf16(device)[0] else dtype


def _computes_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether the device has instructions for bf16 that torch uses, and a sentence that says so."""
    if device.type == "cpu":
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False, "this build of torch has no fast bf16 for CPUs"
        capabilities = torch.cpu.get_capabilities()
        name = next((name for key, name in _CPU_BF16.items() if capabilities.get(key)), None)
        return name is not None, f"the CPU computes bf16 ({name})" if name else "the CPU has no instructions for bf16"
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch asks the current one
            computes = torch.cuda.is_bf16_supported(including_emulation=False)
        return computes, f"{torch.cuda.get_device_name(device)} {'computes' if computes else 'does not compute'} bf16"
    return False, f"whether {device.type} computes bf16 is not known"


def slow_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether writing over a tensor takes longer than writing to new memory; meta tensors stand for the CPU's.

    On processors with AMX torch's bf16 kernels that write over their input take twice as long as those that do not.
    """
    if dtype != torch.bfloat16 or device.type not in ("cpu", "meta"):
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


# -- this process ------------------------------------------------------------------------------------------------------


def set_up(device: torch.device) -> None:
    """Settings of this process that training on a device wants."""
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # the same seed gives the same weights


def keep_freed_memory() -> None:
    """Let the C library keep the large tensors that a step frees, for the next step, and hold them in huge pages.

    By default glibc gives each of them back to the system, which then clears it page by page for its next use: measured
    on a CPU, a third of a small network's training step. Huge pages, where the system leaves them to the program, took
    another 6 % off it: the addresses of small ones are more than a processor remembers. Does nothing where the C
    library is not glibc (Windows, macOS, musl) or the free memory is not known.
    """
    libc = _glibc()
    if libc is None:
        return
    trim_threshold, mmap_threshold, never = -1, -3, -1  # glibc's malloc.h; it takes -1 for the largest size there is
    libc.mallopt(mmap_threshold, never)
    libc.mallopt(trim_threshold, never)
    try:
        free = free_memory(torch.device("cpu"))
    except DeviceError:
        return
    # Addresses that are taken and given back untouched hold no memory; the heap grows into them.
    size, huge = 2**30, getattr(mmap, "MADV_HUGEPAGE", None)
    for block in [block for _ in range(free // size) if (block := libc.malloc(ctypes.c_size_t(size)))]:
        if huge is not None:
            start = ctypes.c_void_p(block + -block % mmap.PAGESIZE)
            libc.madvise(start, ctypes.c_size_t(size - mmap.PAGESIZE), huge)
        libc.free(ctypes.c_void_p(block))


def _glibc() -> Any:
    """The process's own C library where it is glibc, else None."""
    try:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        # Only glibc has all of these; another allocator in its place takes the calls and may do nothing.
        _ = libc.gnu_get_libc_version, libc.mallopt, libc.free, libc.madvise
    except (OSError, AttributeError, TypeError):  # Windows wants a name, macOS and musl lack functions
        return None
    return libc


def now(device: torch.device) -> float:
    """Seconds on a clock, read once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


# -- memory ------------------------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """Bytes that this process holds on the device and may still take; a container's limit counts on a CPU.

    Raises `DeviceError` where that is not known.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        taken_by_torch = torch.mps.driver_allocated_memory()
        return max(torch.mps.recommended_max_memory() - taken_by_torch, 0) + held_memory(device)
    try:
        if device.type == "cpu":
            return min([psutil.virtual_memory().available, *container_room()]) + held_memory(device)
    except (psutil.Error, OSError, RuntimeError, NotImplementedError):
        pass  # a system that psutil does not know, or one that hides its figures
    raise DeviceError(f"how much memory is free on {device} is not known here; give a budget such as 8GB")


def held_memory(device: torch.device) -> int:
    """Bytes of the device that this process holds now: resident on a CPU, allocated on CUDA; 0 where not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    try:
        return int(psutil.Process().memory_info().rss) if device.type == "cpu" else 0
    except (psutil.Error, OSError, RuntimeError, NotImplementedError):
        return 0


# What a control group of version 1 and 2 calls its limits, what it uses, and the files in memory that it can drop.
_CGROUP_FILES = {
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    "cgroup2": (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}
_NO_LIMIT = 2**60  # version 1 writes the largest number of pages instead


def container_room(root: Path = Path("/")) -> list[int]:
    """Bytes that each control group around this process leaves it: its own, and those further up. No limit, no entry.

    Linux gives containers, services and jobs their memory by control groups. `root` is where `/proc` and `/sys` are.
    """
    groups = _groups(root, "memory")
    return [room for kind, folder in groups if (room := _room(folder, *_CGROUP_FILES[kind])) is not None]


def container_memory(root: Path = Path("/")) -> int | None:
    """The least limit of the control groups around this process, in bytes; None where there is none."""
    limits = [_number(folder / name) for kind, folder in _groups(root, "memory") for name in _CGROUP_FILES[kind][0]]
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def container_processors(root: Path = Path("/")) -> float | None:
    """How many processors' time the control groups leave to this process; None where they leave it all."""
    return min((share for kind, folder in _groups(root, "cpu") if (share := _share(kind, folder))), default=None)


def _share(kind: str, folder: Path) -> float | None:
    """Time in a period over the period: `cpu.max` has both in version 2, with `max` for no limit; -1 says so in 1."""
    try:
        if kind == "cgroup2":
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        else:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 < period else None


def _groups(root: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """The version and the folder of each control group around this process that controls `memory` or `cpu`."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, ValueError):  # not Linux, or hidden
        return
    paths: dict[str, PurePosixPath] = {}  # of this process's group, by version: `number:controllers:path`
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif controller in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    for line in mounts:  # `id parent device root place options ... - kind source options`
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.partition(" ")[0]
        if kind not in paths or len(fields) < 5 or (kind == "cgroup" and controller not in re.split(r"[ ,]", after)):
            continue
        top, place = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), text) for text in fields[3:5])
        group = paths[kind]
        # A container sees its own group at the mount, whatever the path says outside.
        inner = group.relative_to(top) if group.is_relative_to(top) and ".." not in group.parts else PurePosixPath()
        mount = root / place.lstrip("/")
        yield from ((kind, mount / folder) for folder in (inner, *inner.parents))


def _room(folder: Path, limits: tuple[str, ...], usage: str, droppable: str) -> int | None:
    """What a group has left, or None where it has no limit."""
    most = [limit for name in limits if (limit := _number(folder / name)) is not None]
    used = _number(folder / usage)
    if not most or used is None:
        return None
    try:
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= int(counts.get(droppable, 0))
    except (OSError, ValueError):
        pass
    return max(min(most) - used, 0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file at the top; "max" is no limit
        return None


def processor() -> str:
    """What the processor is called."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use; all that there are where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo(field: str) -> str:
    """A field of Linux's /proc/cpuinfo of the first core; nothing where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux, or hidden
        return ""
    return next((line.partition(": ")[2] for line in lines if line.startswith(field)), "")
