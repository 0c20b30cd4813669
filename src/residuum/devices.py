"""Where and in which precision to compute: the device asked for, and a probe of what bf16 is worth on it."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import torch
from torch import nn

from residuum.errors import DeviceError


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
    except RuntimeError:
        raise DeviceError(f"{name!r} is not the name of a device; this machine has {', '.join(there)}") from None
    if str(device) not in there:
        raise DeviceError(f"there is no device {name!r} here; this machine has {', '.join(there)}")
    return device


def probe_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 pays on the device, and a sentence that says what was found.

    A CPU is timed: a training step of one convolution, in both precisions. Where it computes bf16 itself the step is
    about twice as fast, elsewhere slower; half as fast again is asked for, so that noise never decides.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, f"{torch.cuda.get_device_name(device)} {'computes' if fast else 'does not compute'} bf16"
    if device.type != "cpu":
        return False, f"bf16 was not probed on {device.type}"
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        image = torch.randn(16, 64, 28, 28).to(memory_format=torch.channels_last)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(20):  # the fastest of so many is one that nothing else disturbed
        for bf16 in (False, True):
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = layer(image)
            out.backward(torch.ones_like(out))
            times[bf16].append(time.perf_counter() - begin)
    ratio = min(times[False]) / min(times[True])
    return ratio > 1.5, f"a convolution in bf16 runs at {ratio:.1f} times the speed of fp32"


def keep_freed_memory() -> None:
    """Let the C library keep the large tensors that a step frees, for the next step, and hold them in huge pages.

    By default glibc gives each of them back to the system, which then clears it page by page for its next use: measured
    on a CPU, a third of a small network's training step. Huge pages, where the system leaves them to the program, took
    another 6 % off it: the addresses of small ones are more than a processor remembers. Does nothing with another C
    library.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, never = -1, -3, -1  # glibc's malloc.h; it takes -1 for the largest size there is
    mallopt(mmap_threshold, never)
    mallopt(trim_threshold, never)
    # Addresses that are taken and given back untouched hold no memory; the heap grows into them.
    malloc.restype = ctypes.c_void_p
    size = 2**30
    blocks = [malloc(ctypes.c_size_t(size)) for _ in range(free_memory(torch.device("cpu")) // size)]
    for block in filter(None, blocks):
        start = block + -block % mmap.PAGESIZE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size - mmap.PAGESIZE), mmap.MADV_HUGEPAGE)
        free(ctypes.c_void_p(block))


def set_up(device: torch.device) -> None:
    """Settings of this process that training on a device wants."""
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # the same seed gives the same weights


def now(device: torch.device) -> float:
    """Seconds on a clock, read once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on an accelerator; without one, what this process holds and may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = Path("/proc/meminfo")
    if device.type != "cpu" or not available.exists():
        raise DeviceError(f"how much memory is free on {device} is not known here; give a budget such as 8GB")
    line = next(line for line in available.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 + held_memory(device)


def held_memory(device: torch.device) -> int:
    """Bytes of the device that this process holds now: resident on a CPU, allocated on CUDA, where known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statistics = Path("/proc/self/statm")
    if device.type != "cpu" or not statistics.exists():
        return 0
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
