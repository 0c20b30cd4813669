"""Devices: how precision is chosen, what memory there is, what is done to a process, on Linux and elsewhere."""

import contextlib
import ctypes
import mmap
import platform
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from residuum import devices
from residuum.devices import (
    choose_precision,
    container_memory,
    container_processors,
    container_room,
    free_memory,
    held_memory,
    pick_device,
    slow_in_place,
)
from residuum.errors import ConfigError, DeviceError

CPU = torch.device("cpu")
MIB, GIB = 2**20, 2**30


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def processor(monkeypatch):
    """Let the CPU have these capabilities and no others."""

    def has(*names):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True) | {"avx512_f": True})

    return has


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16", "sve_bf16"])
def test_auto_is_bf16_on_a_processor_with_instructions_for_it(processor, name):
    processor(name)
    precision, why = choose_precision("auto", CPU)
    assert precision == "bf16"
    assert "computes bf16" in why


def test_auto_is_fp32_on_another_processor_and_where_torch_has_no_onednn(processor, monkeypatch):
    processor()
    assert choose_precision("auto", CPU) == ("fp32", "the CPU has no instructions for bf16")
    processor("amx_bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU)[0] == "fp32"


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


BLOCKS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad disabled": lambda: torch.set_grad_enabled(False),
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.float64),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_the_choice_is_the_same_in_every_block_and_leaves_the_random_state_alone(block):
    expected, before = choose_precision("auto", CPU), torch.get_rng_state()
    with block():
        assert choose_precision("auto", CPU) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_on_cuda_the_device_asked_about_decides_not_the_current_one(monkeypatch):
    current = []

    @contextlib.contextmanager
    def select(device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", select)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current == [1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert choose_precision("auto", torch.device("cuda:0")) == ("fp32", "GPU 0 does not compute bf16")
    assert choose_precision("auto", torch.device("cuda:1")) == ("bf16", "GPU 1 computes bf16")
    with pytest.raises(DeviceError, match="GPU 0 does not compute bf16; ask for fp16"):
        choose_precision("bf16", torch.device("cuda:0"))


def test_a_precision_that_is_asked_for_is_taken_or_refused():
    assert choose_precision("bf16", CPU) == ("bf16", "as asked")
    with pytest.raises(ConfigError, match="must be one of auto, fp32, bf16, fp16"):
        choose_precision("int8", CPU)
    with pytest.raises(DeviceError, match="fp16 is for accelerators"):
        choose_precision("fp16", CPU)


def test_writing_in_place_is_slow_for_bf16_with_amx_alone(processor):
    processor("avx512_bf16")
    assert not slow_in_place(CPU, torch.bfloat16)
    processor("amx_bf16", "avx512_bf16")
    assert slow_in_place(CPU, torch.bfloat16)
    assert slow_in_place(torch.device("meta"), torch.bfloat16)
    assert not slow_in_place(CPU, torch.float32)
    assert not slow_in_place(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:99999999999999999999", "meta"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError, match="this machine has cpu"):
        pick_device(name)


# -- a system that is not Linux with glibc -----------------------------------------------------------------------------


def no_libc(name, *args, **kwargs):
    raise TypeError("argument of type 'NoneType' is not iterable")  # Windows


def libc_of(*names):
    """A C library with these functions alone, which refuse to be called."""

    def called(*args):
        raise AssertionError("a function of a foreign C library was called")

    return lambda name, *args, **kwargs: SimpleNamespace(**dict.fromkeys(names, called))


LIBRARIES = {
    "Windows": no_libc,
    "macOS": libc_of("malloc", "free", "madvise"),
    "musl": libc_of("malloc", "free", "madvise", "malloc_usable_size"),
}


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_a_process_is_set_up_with_another_c_library(library, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", library)
    devices.set_up(CPU)


def hidden(*args, **kwargs):
    raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")


def test_where_proc_is_missing_memory_is_unknown_and_a_process_is_set_up_all_the_same(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    monkeypatch.setattr(psutil, "Process", hidden)
    assert held_memory(CPU) == 0
    with pytest.raises(DeviceError, match="give a budget such as 8GB"):
        free_memory(CPU)
    devices.set_up(CPU)


def test_a_process_is_set_up_where_the_system_has_no_huge_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    devices.set_up(CPU)


def freed_and_taken(kept: bool) -> tuple[int, int]:
    """Bytes that a new process took to get ready, and that it gave back for a tensor of 512 MiB that was freed."""
    script = f"""
import torch
from residuum.devices import held_memory, keep_freed_memory
cpu = torch.device("cpu")
torch.ones(1)
begin = held_memory(cpu)
if {kept}:
    keep_freed_memory()
ready = held_memory(cpu)
tensor = torch.ones(128, 2**20)
full = held_memory(cpu)
del tensor
print(ready - begin, full - held_memory(cpu))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    taken, freed = map(int, run.stdout.split())
    return taken, freed


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked")
def test_freed_memory_is_kept_when_asked_and_asking_takes_none():
    assert freed_and_taken(kept=False)[1] > 500 * MIB, "or this test could not fail"
    taken, freed = freed_and_taken(kept=True)
    assert taken < 20 * MIB
    assert freed < 20 * MIB


# -- memory ------------------------------------------------------------------------------------------------------------


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
34 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"""


def group_v2(place, limit, used, inactive=0, high="max"):
    folder = f"sys/fs/cgroup/{place}".rstrip("/")
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": high,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive}",
    }


def group_v1(place, limit, used, inactive=0):
    folder = f"sys/fs/cgroup/memory/{place}".rstrip("/")
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}",
    }


def test_a_container_of_version_2_leaves_its_limit_less_what_it_cannot_drop(tmp_path):
    # A container with its own view of groups sees itself at the root.
    write(tmp_path, {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2_MOUNT})
    write(tmp_path, group_v2("", 8 * GIB, 3 * GIB, GIB))
    assert container_room(tmp_path) == [6 * GIB]


def test_the_least_limit_up_the_tree_counts(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/user.slice/job.scope", "proc/self/mountinfo": V2_MOUNT})
    write(tmp_path, group_v2("user.slice/job.scope", "max", GIB))
    write(tmp_path, group_v2("user.slice", 4 * GIB, 2 * GIB, high=3 * GIB))
    assert container_room(tmp_path) == [GIB]
    write(tmp_path, group_v2("user.slice/job.scope", 2 * GIB, 2 * GIB))
    assert container_room(tmp_path) == [0, GIB]


@pytest.mark.parametrize(("path", "root"), [("/docker/abc", "/docker/abc"), ("/docker/abc", "/"), ("/", "/")])
def test_a_container_of_version_1_is_found_from_inside_and_from_outside(tmp_path, path, root):
    listed = f"9:name=systemd:/\n4:memory:{path}\n1:cpu,cpuacct:/\n0::/"
    write(tmp_path, {"proc/self/cgroup": listed, "proc/self/mountinfo": V1_MOUNTS.format(root=root)})
    inner = path.removeprefix(root) if root != "/" else path.lstrip("/")
    write(tmp_path, group_v1(inner, 2 * GIB, GIB, GIB // 2))
    assert container_room(tmp_path)[0] == 3 * GIB // 2


def test_a_group_outside_the_mount_is_looked_for_at_the_mount(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/../../elsewhere", "proc/self/mountinfo": V2_MOUNT})
    write(tmp_path, group_v2("", GIB, 0))
    assert container_room(tmp_path) == [GIB]


@pytest.mark.parametrize("listed", ["", "0::/", "nonsense\n::::\n4:memory", "4:memory:/gone"])
def test_without_limits_or_with_files_that_say_nothing_no_container_counts(tmp_path, listed):
    assert container_room(tmp_path) == []
    write(tmp_path, {"proc/self/cgroup": listed, "proc/self/mountinfo": V1_MOUNTS.format(root="/") + "\n7 - \nx"})
    assert container_room(tmp_path) == []


def test_a_containers_limits_are_the_least_up_the_tree_in_version_2(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/user.slice/job.scope", "proc/self/mountinfo": V2_MOUNT})
    write(tmp_path, group_v2("user.slice/job.scope", "max", GIB) | group_v2("user.slice", 4 * GIB, 2 * GIB))
    write(tmp_path, {"sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000"})
    assert container_processors(tmp_path) is None
    write(tmp_path, {"sys/fs/cgroup/user.slice/cpu.max": "150000 100000"})
    assert container_memory(tmp_path) == 4 * GIB
    assert container_processors(tmp_path) == 1.5


def test_a_containers_limits_are_read_in_version_1_where_no_limit_is_a_number(tmp_path):
    listed = "9:name=systemd:/\n4:memory:/docker/a\n1:cpu,cpuacct:/docker/a"
    write(tmp_path, {"proc/self/cgroup": listed, "proc/self/mountinfo": V1_MOUNTS.format(root="/docker/a")})
    cpu = "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_"
    write(tmp_path, group_v1("", 9223372036854771712, GIB))
    write(tmp_path, {f"{cpu}quota_us": -1, f"{cpu}period_us": 100000})
    assert (container_memory(tmp_path), container_processors(tmp_path)) == (None, None)
    write(tmp_path, group_v1("", 2 * GIB, GIB) | {f"{cpu}quota_us": 50000})
    assert (container_memory(tmp_path), container_processors(tmp_path)) == (2 * GIB, 0.5)


def test_free_memory_is_the_containers_where_that_is_less_and_counts_what_is_held(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GIB))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB)))
    for rooms, expected in (([], 11 * GIB), ([2 * GIB, 3 * GIB], 3 * GIB), ([40 * GIB], 11 * GIB)):
        monkeypatch.setattr(devices, "container_room", lambda rooms=rooms: rooms)
        assert free_memory(CPU) == expected


def test_on_cuda_free_memory_counts_what_torch_keeps_for_this_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    assert free_memory(torch.device("cuda")) == 7 * GIB
