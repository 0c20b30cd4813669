"""What happens to an image before the network, as data. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network: channels, height and width, mean and deviation of values in [0, 1].

    `crop` is the share of the shorter side that the central crop keeps; 0 stretches the whole image instead.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
