"""What happens to an image before the network, as data. No torch here."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from residuum.errors import ConfigError, quoted
from residuum.validation import AtLeast, Within, check, refuse_unknown

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network, as data. Raises `ConfigError`."""

    # number of channels: 1 for grey images, 3 for colours
    channels: Annotated[int, AtLeast(1)]
    # height and width in pixels of what the network is given
    image_size: Annotated[tuple[int, int], AtLeast(1)]
    # mean of values from 0 to 1, a number for each channel, which is taken off
    mean: tuple[float, ...]
    # their deviation, the same way, by which is divided
    std: Annotated[tuple[float, ...], Within("(0, 1e9]")]
    # share of the shorter side that the central crop keeps; 0 stretches the whole image instead
    crop: Annotated[float, Within("[0, 1]")]
    # how images are scaled
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        check(self)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                value = quoted(getattr(self, name))
                raise ConfigError(f"{name} is {value}; it must have one number for each of {self.channels} channels")

    def to_dict(self) -> dict[str, Any]:
        """Field name to value, as JSON can say it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The inverse of `to_dict`; raises `ConfigError`."""
        if not isinstance(values, dict):
            raise ConfigError(f"preprocessing is {quoted(values)}; it must be a table of its fields")
        names = [f.name for f in dataclasses.fields(cls)]
        refuse_unknown(values, names, "field of preprocessing")
        missing = [name for name in names[:-1] if name not in values]
        if missing:
            raise ConfigError(f"preprocessing does not say {', '.join(missing)}")
        return cls(**values)


# Of the 1.28 million training images, by which torchvision, timm and most others normalise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# 224x224 pixels cut from the middle of an image whose shorter side is scaled to 256: torchvision's IMAGENET1K_V1.
IMAGENET = Preprocessing(3, (224, 224), IMAGENET_MEAN, IMAGENET_STD, 0.875)
