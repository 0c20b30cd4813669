"""What training does to its process before it begins."""

import platform
import subprocess
import sys

import pytest

MIB = 2**20


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked")
def test_freed_memory_is_kept_when_asked_and_asking_takes_none():
    assert freed_and_taken(kept=False)[1] > 500 * MIB, "or this test could not fail"
    taken, freed = freed_and_taken(kept=True)
    assert taken < 20 * MIB
    assert freed < 20 * MIB
