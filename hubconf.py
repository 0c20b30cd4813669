"""For `torch.hub.load`: each preset is an entry point that takes the fields of its config, and `weights`."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

import residuum as _residuum

dependencies = ["torch", "torchvision", "numpy", "safetensors"]

for _name in _residuum.list_presets():
    _entry = partial(_residuum.create, _name)
    _entry.__doc__ = f"The network of the preset {_name}, as residuum.create makes it."
    globals()[_name] = _entry

del partial, Path
