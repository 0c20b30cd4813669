"""Policies of augmentation by name, on one image at a time, and erasing: torchvision's transforms.

All draw from torch's generator, as torchvision's do. torch is imported where it is used: a recipe knows the names.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from residuum.errors import ConfigError, quoted

if TYPE_CHECKING:
    from torchvision.transforms import v2

_LARGEST = {"operations": 16, "magnitude": 30}  # of RandAugment; torchvision has 31 magnitudes, from 0 on


def parse_policy(name: str) -> tuple[int, int] | None:
    """Operations and magnitude of a policy `rand:OPERATIONS:MAGNITUDE`, or None for `trivial`.

    Raises `ConfigError` for anything else.
    """
    if name == "trivial":
        return None
    kind, *numbers = name.split(":")
    if kind == "rand" and len(numbers) == 2 and all(n.isascii() and n.isdigit() and len(n) <= 2 for n in numbers):
        operations, magnitude = map(int, numbers)
        if 1 <= operations <= _LARGEST["operations"] and magnitude <= _LARGEST["magnitude"]:
            return operations, magnitude
    raise ConfigError(
        f"augment.policy is {quoted(name)}; it must be trivial, or rand:OPERATIONS:MAGNITUDE with 1 to "
        f"{_LARGEST['operations']} operations and a magnitude of 0 to {_LARGEST['magnitude']}, such as rand:2:9"
    )


def policy_transform(name: str, fill: Sequence[int], interpolation: str = "bilinear") -> "v2.Transform":
    """From uint8 (C, H, W) to the same, by TrivialAugment (2103.10158) or RandAugment (1909.13719).

    What is turned or moved out of the image leaves the colour `fill`, one number a channel.
    """
    from torchvision.transforms import InterpolationMode, v2

    numbers = parse_policy(name)
    more = {"interpolation": InterpolationMode(interpolation), "fill": list(fill)}
    if numbers is None:
        return v2.TrivialAugmentWide(**more)
    return v2.RandAugment(num_ops=numbers[0], magnitude=numbers[1], **more)


def erasing_transform(share: float, fill: Sequence[int]) -> "v2.Transform":
    """Erases a box in that share of images (1708.04896), 2 to 33 % of the image, by the colour `fill`."""
    from torchvision.transforms import v2

    return v2.RandomErasing(p=share, value=[float(colour) for colour in fill])
