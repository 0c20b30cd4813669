"""From decoded images to what a network takes in evaluation and prediction. Torch alone: torchvision is not loaded.

The pixels are those of torchvision's transforms, whose import takes as long as that of torch itself.
"""

import math
import platform
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from residuum.preprocessing import Preprocessing

# Pixels that an image may have when it is scaled before it is cropped; one that would have more is cropped first.
LARGEST_SCALED = 1 << 22
_CACHED = 1 << 17  # values of four bytes


class Normalise:
    """uint8 (N, C, H, W) to float, channels last, with the mean at 0 and the deviation at 1, on one device."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean = torch.tensor(preprocessing.mean, device=device, dtype=torch.float32) * 255
        std = torch.tensor(preprocessing.std, device=device, dtype=torch.float32) * 255
        self.mean, self.std = mean, std  # of a row of pixels, as wide as the last images were

    def __call__(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        normal = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
        if len(self.mean) != width * channels:
            self.mean, self.std = (row[:channels].repeat(width) for row in (self.mean, self.std))
        # Whole rows at once: three channels alone are too few for a processor's wide registers. And on a processor so
        # many images at a time that they stay in its cache from one operation to the next.
        rows, pixels = normal.permute(0, 2, 3, 1).flatten(2), images.permute(0, 2, 3, 1)
        step = max(1, _CACHED // (channels * height * width)) if images.device.type == "cpu" else max(count, 1)
        for begin in range(0, count, step):
            part = rows[begin : begin + step]
            part.copy_(pixels[begin : begin + step].flatten(2))
            part.sub_(self.mean).div_(self.std)
        return normal


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (N, C, H, W) to float, channels last, with the mean at 0 and the deviation at 1, on the images' device."""
    return Normalise(preprocessing, images.device)(images)


@dataclass(frozen=True)
class EvaluationTransform:
    """From uint8 (C, any, any) to uint8 (C, *image_size): scaled and cropped to the centre, or stretched.

    Small images may come as a batch, (N, C, any, any).

    As torchvision's `Resize` and `CenterCrop` do it. A long, thin image, which scaled as a whole would take gigabytes,
    has only what the crop shows scaled.
    """

    preprocessing: Preprocessing

    def __call__(self, image: Tensor) -> Tensor:
        height, width = self.preprocessing.image_size
        if self.preprocessing.crop == 0:
            return scaled_to(image, (height, width), self.preprocessing.interpolation)
        scaled = self._scaled(image.shape[-2], image.shape[-1])
        if scaled[0] * scaled[1] > max(LARGEST_SCALED, 16 * height * width):
            return scaled_crop(image, scaled, (height, width), self.preprocessing.interpolation)
        image = scaled_to(image, scaled, self.preprocessing.interpolation)
        top, left = round((scaled[0] - height) / 2.0), round((scaled[1] - width) / 2.0)
        return image[..., top : top + height, left : left + width]

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image is scaled, just covering the image size divided by the crop's share."""
        up, across = (round(side / self.preprocessing.crop) for side in self.preprocessing.image_size)
        if up * width >= across * height:
            return up, int(up * width / height)
        return int(across * height / width), across


def evaluation_transform(preprocessing: Preprocessing) -> EvaluationTransform:
    """From an image of uint8 (channels, any, any) to uint8 (channels, *image_size), as in evaluation and prediction."""
    return EvaluationTransform(preprocessing)


def scaled_to(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """An image or a batch, uint8 (..., C, any, any), scaled to a height and width as torchvision's `resize` does it."""
    if image.shape[-2:] == size:
        return image
    if interpolation != "lanczos":
        # One image alone says that it is channels-last by the stride of its place in a batch of one.
        one = image.movedim(-3, -1)[None].movedim(-1, -3) if image.ndim == 3 else image
        smooth = interpolation != "nearest"
        exact = one if _scales_bytes(image, interpolation) else one.float()
        scaled = F.interpolate(
            exact, size, mode=interpolation, align_corners=False if smooth else None, antialias=smooth
        )
        if exact is not one:
            scaled = scaled.clamp_(0, 255).round_().to(torch.uint8)
        return scaled[0] if image.ndim == 3 else scaled
    planes = [Image.fromarray(plane.numpy()) for plane in image.flatten(0, -3).cpu()]
    planar = np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.LANCZOS)) for plane in planes])
    return torch.from_numpy(planar).view(*image.shape[:-2], *size).to(image.device)


def _scales_bytes(image: Tensor, interpolation: str) -> bool:
    """Whether torch scales uint8 as it is, or torchvision goes by way of float32: as it decides it."""
    if interpolation == "nearest":
        return True
    if image.device.type != "cpu":
        return False
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return interpolation == "bicubic" or vectors or platform.machine() in ("aarch64", "arm64")


def scaled_crop(image: Tensor, scaled: tuple[int, int], size: tuple[int, int], interpolation: str) -> Tensor:
    """The central `size` of an image scaled to `scaled`, without the rest: a product with the weights of each side."""
    (rows, top), (columns, left) = (
        _weights(image.shape[axis], scaled[axis], round((scaled[axis] - size[axis]) / 2.0), size[axis], interpolation)
        for axis in (-2, -1)
    )
    shown = image[:, top : top + rows.shape[1], left : left + columns.shape[1]].float()
    return (rows @ shown @ columns.T).round().clamp(0, 255).to(torch.uint8)


def _weights(length: int, scaled: int, first: int, count: int, interpolation: str) -> tuple[Tensor, int]:
    """Weights (count, n) of pixels from `low` on, for pixels `first` and on of a side that `length` is scaled to."""
    step = length / scaled
    stretch = max(step, 1.0)
    reach = {"nearest": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}[interpolation] * stretch
    centres = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * step
    if interpolation == "nearest":
        chosen = (torch.arange(first, first + count, dtype=torch.float64) * step).floor().clamp_max(length - 1).long()
        low = int(chosen[0])
        return F.one_hot(chosen - low).float(), low
    low = max(0, math.floor(float(centres[0]) - reach))
    high = min(length, math.ceil(float(centres[-1]) + reach))
    pixels = torch.arange(low, high, dtype=torch.float64) + 0.5
    distance = ((pixels - centres[:, None]) / stretch).abs()
    if interpolation == "bilinear":
        weights = (1 - distance).clamp_min(0)
    elif interpolation == "bicubic":  # Keys' kernel with a = -0.5, as Pillow's
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    else:
        weights = torch.where(distance < 3, distance.sinc() * (distance / 3).sinc(), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float(), low
