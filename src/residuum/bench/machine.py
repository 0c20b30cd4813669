"""Where something was measured: processor or accelerator, versions, commit."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import residuum
from residuum.devices import cpuinfo, processor
from residuum.extras import version_of

_FAST = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def describe(device: str) -> dict[str, Any]:
    """The machine in a few plain fields."""
    described = {
        "cpu": processor(),
        "cpu features": " ".join(cpu_features(_FAST)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version_of(name) or "not installed" for name in ("torch", "torchvision", "timm", "transformers")},
        "residuum": residuum.__version__,
        "commit": commit(),
    }
    if device.startswith("cuda"):
        cudnn: Any = torch.backends.cudnn
        described |= {
            "accelerator": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
            "clocks": _clocks(),
        }
    return described


def cpu_features(names: Iterable[str]) -> list[str]:
    """Which of some sets of instructions, as Linux names them, the processor has."""
    there = (cpuinfo("flags") or cpuinfo("Features")).split()
    return [name for name in names if name in there]


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def commit() -> str:
    """Of the checkout that the package is installed from, or nothing."""
    folder = str(Path(__file__).parent)
    if not _said("git", "-C", folder, "ls-files", "machine.py"):
        return "not a checkout"
    changed = _said("git", "-C", folder, "status", "--porcelain", "--untracked-files=no", ".")
    return _said("git", "-C", folder, "rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _clocks() -> str:
    """What the card runs at and what it could, in MHz: noted, never changed."""
    return _said("nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem", "--format=csv,noheader")
