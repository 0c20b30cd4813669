"""What an exported network takes, and the layers that make it what the network takes."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.errors import ConfigError, quoted
from residuum.preprocessing import Preprocessing

Kind = Literal["image", "pixels", "normalized"]
Order = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Input:
    """What is given to the file.

    `image`: decoded images of any size, uint8 (N, H, W, C), which are scaled and cropped inside. `pixels`: uint8
    (N, *image_size, C), which are normalised inside. `normalized`: float32 (N, C, *image_size). The number of images is
    free. `dynamic_size` frees height and width of the last two as well. `order` is that of the channels of uint8
    images. Raises `ConfigError`.
    """

    kind: Kind
    channels: int
    image_size: tuple[int, int]
    preprocessing: Preprocessing | None = None
    order: Order = "rgb"
    dynamic_size: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("input", Kind), ("order", Order)):
            value = self.kind if name == "input" else self.order
            if value not in get_args(allowed):
                raise ConfigError(f"{name} is {quoted(value)}; it must be one of {', '.join(get_args(allowed))}")
        if self.kind != "normalized":
            if self.preprocessing is None:
                raise ConfigError(
                    f"input is {self.kind}, but the network does not say its preprocessing; set model.preprocessing, "
                    "or export with input normalized"
                )
            if self.preprocessing.channels != self.channels:
                raise ConfigError(
                    f"preprocessing has {self.preprocessing.channels} channels and the network takes {self.channels}"
                )
        if self.order == "bgr" and (self.kind == "normalized" or self.channels != 3):
            raise ConfigError("order bgr is for uint8 images of 3 channels; leave it out")
        if self.kind == "image" and self.preprocessing is not None and self.preprocessing.interpolation == "lanczos":
            raise ConfigError(
                "preprocessing scales by lanczos, which no other runtime has; export with input pixels, and scale "
                "before"
            )
        if self.dynamic_size and self.kind == "image":
            raise ConfigError("input image takes any size already; leave out the dynamic size")

    @property
    def free(self) -> tuple[int, ...]:
        """The axes of the file's input whose length is free."""
        if self.kind == "image" or (self.dynamic_size and self.kind == "pixels"):
            return (0, 1, 2)
        return (0, 2, 3) if self.dynamic_size else (0,)

    @property
    def network(self) -> "Input":
        """What goes from this input to the network, with the same sizes free: normalised tensors."""
        return Input("normalized", self.channels, self.image_size, dynamic_size=self.dynamic_size)

    @property
    def example(self) -> Tensor:
        """Images to capture the file's input with: no length is 1, and no two are alike, which would become fixed."""
        if self.kind == "normalized":
            return torch.zeros(2, self.channels, *self._size)
        height, width = (65, 97) if self.kind == "image" else self._size
        return torch.zeros(2, height, width, self.channels, dtype=torch.uint8)

    @property
    def _size(self) -> tuple[int, int]:
        height, width = self.image_size
        return (height + 32, width + 64) if self.dynamic_size else (height, width)


class Scale(nn.Module):
    """Decoded images, uint8 (N, H, W, C), to what of them the network looks at, uint8 (N, C, *image_size).

    As `EvaluationTransform`, in steps that a graph can hold for every height and width.
    """

    def __init__(self, given: Input) -> None:
        super().__init__()
        # Plain values, of which TorchScript can be made too.
        self.bgr, self.scales = given.order == "bgr", given.kind == "image"
        how, (self.height, self.width) = given.preprocessing, given.image_size
        self.crop = 0.0 if how is None else how.crop
        self.interpolation = "bilinear" if how is None else str(how.interpolation)
        self.up, self.across = (round(side / self.crop) if self.crop else side for side in given.image_size)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2)
        if self.bgr:
            x = x.flip(1)
        if not self.scales:
            return x
        if self.crop == 0:
            return resized(x, self.height, self.width, self.interpolation)
        rows = at_least(self.up, self.across * images.shape[1] // images.shape[2])
        columns = at_least(self.across, self.up * images.shape[2] // images.shape[1])
        x = resized(x, rows, columns, self.interpolation)
        top, left = middle(rows - self.height), middle(columns - self.width)
        return x[:, :, top : top + self.height, left : left + self.width]


# Lengths below may also be symbols of a program that is captured (torch.SymInt), which TorchScript has no name for.


def resized(x: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """uint8 (N, C, any, any) to uint8 (N, C, height, width), as torchvision scales images."""
    if interpolation == "nearest":
        return F.interpolate(x, [height, width], mode="nearest")
    return F.interpolate(x, [height, width], mode=interpolation, antialias=True)


def at_least(least: int, length: int) -> int:
    """The larger one, of which a captured program makes no condition on the image's size."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return max(least, length)
    return torch.sym_max(least, length)  # type: ignore[return-value]


def middle(over: int) -> int:
    """Half of what is cut off, rounded as Python's `round` does, to even numbers: so torchvision crops."""
    return over // 2 + (over % 2) * ((over // 2) % 2)


class Normal(nn.Module):
    """uint8 (N, C, H, W) to float32, with the mean at 0 and the deviation at 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32) * 255
            self.register_buffer(name, values.view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.mean) / self.std
