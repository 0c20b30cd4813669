"""Whether a network's activations and sums write over their input: less memory, and mostly less time."""

import torch
from torch import nn

from residuum.devices import slow_in_place


def set_in_place(model: nn.Module, in_place: bool) -> None:
    """Set it for every module that has the choice, in place. The numbers do not change, what is kept for backward may.

    Without in-place work a network suits tools that hook into it: full backward hooks, captum, opacus.
    """
    for module in model.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = in_place  # type: ignore[assignment]


def choose_in_place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Set what is faster on a device for activations of `dtype`, autocast's where that is on; gives what was chosen."""
    in_place = not slow_in_place(device, dtype)
    set_in_place(model, in_place)
    return in_place
