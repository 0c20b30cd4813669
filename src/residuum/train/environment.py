"""With what a run was carried out: code, libraries, device. What differs here may differ in the outcome."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from residuum.errors import RunError, first_line, quoted
from residuum.files import write_text

if TYPE_CHECKING:
    import torch

FILE = "environment.json"
# What decides the outcome of a recipe. The command line, pages and measuring do not.
_DECIDING = ("config.py", "preprocessing.py", "devices.py", "nn", "data", "memory", "weights", "train")
Environment = Mapping[str, str | int]


def here(device: "torch.device") -> Environment:
    """Versions, a digest of the code that decides, the device that computes and how many threads do."""
    import torch

    from residuum import __version__
    from residuum.devices import processor

    return {
        "residuum": __version__,
        "code": code_digest(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "device": torch.get_device_module(device).get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


@cache
def code_digest() -> str:
    """The SHA-256 of the sources that decide an outcome, first 12 digits: two runs of one digest ran the same code."""
    root, total = Path(__file__).parents[1], hashlib.sha256()
    for name in _DECIDING:
        for path in [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


def note(path: Path, now: Environment, epoch: int) -> None:
    """Write down in a run folder that from after so many epochs on it is this, unless it was this before."""
    before = read(path)
    if not before or {**before[-1], "epoch": 0} != {**now, "epoch": 0}:
        write_text(path / FILE, json.dumps([*before, {"epoch": epoch, **now}], indent=1) + "\n", RunError)


def read(path: Path) -> Sequence[Environment]:
    """What a run folder says, the first first; nothing where it has no such file. Raises `RunError`."""
    file = path / FILE
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ValueError("it is no list of tables")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{FILE} in {quoted(str(path))} cannot be read: {first_line(error)}") from None
    return found
