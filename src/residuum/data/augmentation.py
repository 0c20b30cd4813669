"""From images to what a network takes in training: one `Augmentation` with two back ends.

Image files are cropped, shifted and mirrored one at a time by torchvision's transforms, in the worker that reads them.
Images in memory are so a batch at a time, on the device, by one gather. Both do the same steps in the same order; the
draws of an image file are a function of (seed, epoch, image), those of images in memory of (seed, epoch, step) and the
place in the batch.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from residuum.data.policies import erasing_transform, policy_transform
from residuum.data.preparing import EvaluationTransform, scaled_to
from residuum.data.settings import Augmentation
from residuum.preprocessing import Preprocessing

_CROP_RATIO = (3 / 4, 4 / 3)  # of width to height of random crops (1409.4842)
_TRIES = 10  # of a random crop that does not fit
_MIRROR = 0x6D6972  # "mir": tells these seeds from those of order and augmentation


def seed_for(*parts: int) -> int:
    """A 63-bit seed that depends on all parts: equal parts give equal seeds, others unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def border(preprocessing: Preprocessing) -> Tensor:
    """The mean colour, uint8 (C,), which normalises to nearly 0."""
    return (torch.tensor(preprocessing.mean) * 255).round().to(torch.uint8)


# -- training, one file at a time --------------------------------------------------------------------------------------


class TrainingTransform:
    """From uint8 (C, any, any) to uint8 (C, *size), with draws from torch's generator.

    Crop, shift and mirror draw and compute as torchvision's transforms do, but are called without those transforms'
    search through their inputs, which takes as long as the scaling. `size` is that of evaluation where left out.
    """

    def __init__(
        self, preprocessing: Preprocessing, augmentation: Augmentation, size: tuple[int, int] | None = None
    ) -> None:
        if size is not None:
            preprocessing = dataclasses.replace(preprocessing, image_size=size)
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self.evaluate = EvaluationTransform(preprocessing)
        self.border = border(preprocessing)
        fill = self.border.tolist()
        scale = augmentation.crop_scale
        self.crop = v2.RandomResizedCrop(preprocessing.image_size, scale=scale, ratio=_CROP_RATIO) if scale else None
        self.last: list[v2.Transform] = []
        if augmentation.policy is not None:
            self.last.append(policy_transform(augmentation.policy, fill))
        if augmentation.erase:
            self.last.append(erasing_transform(augmentation.erase, fill))

    def __call__(self, image: Tensor, mirror: bool = False) -> Tensor:
        """An augmented image; whether it is to `mirror` is asked where that is not drawn at random."""
        (height, width), pad = self.preprocessing.image_size, self.augmentation.pad
        if self.crop is not None:
            box = self.crop.make_params([image])
            image = image.narrow(1, box["top"], box["height"]).narrow(2, box["left"], box["width"])
            image = scaled_to(image, (height, width), self.preprocessing.interpolation)
        else:
            image = self.evaluate(image)
        if pad:
            image = _surrounded(image, pad, None if self.augmentation.border == "reflect" else self.border)
            top, left = (int(torch.randint(2 * pad + 1, ())) for _ in range(2))
            image = image[:, top : top + height, left : left + width]
        if self.augmentation.flip == "random":
            mirror = bool(torch.rand(1) < 0.5)
        if mirror:
            image = functional.horizontal_flip_image(image)
        for transform in self.last:
            image = transform(image)
        if self.augmentation.cutout:
            image = _cut_out(image[None], torch.rand(2, 1), self.augmentation.cutout, self.border)[0]
        return image


def mirrored_first(seed: int, image: int) -> bool:
    """Whether an image is mirrored in the first epoch, and in every other one from there, where mirroring alternates.

    A function of the seed and the image's number alone.
    """
    return bool(seed_for(seed, image, _MIRROR) & 1)


def _surrounded(images: Tensor, pad: int, colour: Tensor | None) -> Tensor:
    """Images (..., C, H, W) with a margin of `pad` pixels of a colour (C,), or of the image mirrored at its edge."""
    if colour is not None:
        return functional.pad_image(images, [pad], fill=colour.tolist())  # type: ignore[no-any-return]
    places = (_reflected(torch.arange(-pad, side + pad, device=images.device), side) for side in images.shape[-2:])
    rows, columns = places
    return images[..., rows, :][..., columns]


def _reflected(places: Tensor, length: int) -> Tensor:
    """Places in a line that goes on beyond its ends as its mirror image, the end itself not repeated."""
    return (length - 1) - ((length - 1) - places.abs()).abs()


def _cut_out(images: Tensor, centres: Tensor, side: int, colour: Tensor) -> Tensor:
    """Images (N, C, H, W) with a square of a colour (C,) around centres (2, N), shares of height and width."""
    inside = []
    for length, share in zip(images.shape[-2:], centres, strict=True):
        first = (share * length).floor()[:, None] - side // 2
        places = torch.arange(length, device=images.device)
        inside.append((places >= first) & (places < first + side))
    within = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return torch.where(within, colour.to(images.device, images.dtype).view(-1, 1, 1), images)


# -- training, a batch in memory at a time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """How the images of a batch vary: shifts (2, N) down and right, whether mirrored (N,), crops (4, N) or none.

    A crop is top, left, height and width in pixels. `cut` is where a square is cut out, (2, N) or none: shares of
    height and width.
    """

    shift: Tensor
    mirror: Tensor
    crop: Tensor | None
    cut: Tensor | None = None

    def take(self, places: slice | Tensor) -> "Draws":
        """Those of some images."""
        return self._each(lambda value: value[..., places])

    def to(self, device: torch.device) -> "Draws":
        """The same on a device."""
        return self._each(lambda value: value.to(device, torch.float32 if value is self.crop else None))

    @staticmethod
    def together(draws: "list[Draws]") -> "Draws":
        """Those of several batches, one after the other."""

        def joined(name: str) -> Tensor | None:
            parts = [part for one in draws if (part := getattr(one, name)) is not None]
            return torch.cat(parts, -1) if parts else None

        return Draws(**{f.name: joined(f.name) for f in dataclasses.fields(Draws)})  # type: ignore[arg-type]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{n: change(value) for n, value in values.items() if value is not None})


def draw(augmentation: Augmentation, count: int, size: tuple[int, int], seed: int) -> Draws:
    """Draws for a batch of `count` images of `size`, a function of the seed. Mirrors that alternate are not drawn."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(2 * augmentation.pad + 1, (2, count, 1), generator=generator)
    mirror = torch.rand(count, 1, generator=generator) < 0.5
    crop = None
    if augmentation.crop_scale is not None:
        crop = _crops(augmentation.crop_scale, count, size, generator)
    cut = torch.rand(2, count, generator=generator) if augmentation.cutout else None
    return Draws(shift[..., 0], mirror[:, 0] & (augmentation.flip == "random"), crop, cut)


def _crops(scale: tuple[float, float], count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random crops (4, N) as torchvision's `RandomResizedCrop` takes them: first of ten that fits, or the middle."""
    height, width = size
    share, lean, down, right = torch.rand(4, count, _TRIES, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
    low, high = (math.log(ratio) for ratio in _CROP_RATIO)
    ratio = (low + (high - low) * lean).exp()
    across, up = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (across > 0) & (across <= width) & (up > 0) & (up <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    up, across, down, right = (values.gather(1, first)[:, 0] for values in (up, across, down, right))
    # The largest crop in the centre that is no longer or wider than a crop may be.
    whole_up, whole_across = min(height, round(width / _CROP_RATIO[0])), min(width, round(height * _CROP_RATIO[1]))
    fits = fits.any(1)
    up, across = torch.where(fits, up, whole_up), torch.where(fits, across, whole_across)
    top = torch.where(fits, (down * (height - up + 1)).floor(), (height - whole_up) // 2)
    left = torch.where(fits, (right * (width - across + 1)).floor(), (width - whole_across) // 2)
    return torch.stack([top, left, up, across])


class MemoryTransform:
    """Images held on a device, uint8 (N, H, W, C), from which batches are taken, augmented or as they are."""

    def __init__(
        self, images: Tensor, preprocessing: Preprocessing, augmentation: Augmentation, device: torch.device
    ) -> None:
        self.preprocessing, self.augmentation, self.pad = preprocessing, augmentation, augmentation.pad
        self.own = (images.shape[1], images.shape[2])
        # Shifted images are windows of larger ones with a border; crops are shifted after they were scaled.
        self.around = self.pad if augmentation.crop_scale is None else 0
        edge = border(preprocessing)
        self.colour = None if augmentation.border == "reflect" else edge
        height, width = self.own
        # Images that are smaller than their mirrored border are only trained on scaled up, and surrounded then.
        self.held = 0 if self.colour is None and self.around >= min(self.own) else self.around
        if self.colour is None:
            padded = _surrounded(images.permute(0, 3, 1, 2), self.held, None).permute(0, 2, 3, 1)
        else:  # a copy at a time: these images are all there are
            padded = edge.expand(len(images), height + 2 * self.around, width + 2 * self.around, -1).clone()
            padded[:, self.around : self.around + height, self.around : self.around + width] = images
        self.images, self.border = padded.contiguous().to(device), edge.to(device).float()

    def __call__(self, index: Tensor, draws: Draws | None, size: tuple[int, int] | None = None) -> Tensor:
        """(n, C, *size), channels last in memory, of the images of an index (n,) on the device.

        uint8, but float where crops are scaled. `size` is the preprocessing's where left out.
        """
        height, width = size = size or self.preprocessing.image_size
        rows = torch.arange(height, device=self.images.device).expand(len(index), -1)
        columns = torch.arange(width, device=self.images.device).expand(len(index), -1)
        if draws is None:
            return self._window(index, rows + self.around, columns + self.around, size)
        columns = torch.where(draws.mirror[:, None], columns.flip(1), columns)
        rows, columns = rows + draws.shift[0][:, None], columns + draws.shift[1][:, None]
        if draws.crop is not None:
            images = self._scaled(index, rows - self.pad, columns - self.pad, draws.crop, size)
        else:
            images = self._window(index, rows, columns, size)
        if draws.cut is not None:
            images = _cut_out(images, draws.cut, self.augmentation.cutout, self.border)
        return images

    def _window(self, index: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        """Pixels at rows (n, H) and columns (n, W) of images with their margin, scaled to `size` if they are not."""
        if size == self.own:
            # One gather takes crop and mirror together and leaves channels last in memory.
            return self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        (height, width), around, held = self.own, self.around, self.held
        images = self.images[index, held : held + height, held : held + width].permute(0, 3, 1, 2)
        images = EvaluationTransform(dataclasses.replace(self.preprocessing, image_size=size))(images)
        images = _surrounded(images, around, self.colour) if around else images
        numbers = torch.arange(len(index), device=index.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _scaled(self, index: Tensor, rows: Tensor, columns: Tensor, crop: Tensor, size: tuple[int, int]) -> Tensor:
        """The pixels of crops scaled to the image size at rows (n, H) and columns (n, W), which may lie outside."""
        height, width = self.own
        high, wide = size
        top, left, up, across = crop[..., None]
        if self.colour is None:
            rows, columns = _reflected(rows, high), _reflected(columns, wide)
        # Between the nearest two pixels of each axis: a crop is scaled up, or down by next to nothing.
        y = ((rows + 0.5) * (up / high) - 0.5).clamp_min(0).minimum(up - 1) + top
        x = ((columns + 0.5) * (across / wide) - 0.5).clamp_min(0).minimum(across - 1) + left
        images = self.images[index].permute(0, 3, 1, 2).float()
        grid = torch.stack(
            [
                ((2 * x + 1) / width - 1)[:, None, :].expand(-1, high, -1),
                ((2 * y + 1) / height - 1)[:, :, None].expand(-1, -1, wide),
            ],
            -1,
        )
        scaled = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
        inside = ((rows >= 0) & (rows < high))[:, :, None] & ((columns >= 0) & (columns < wide))[:, None, :]
        scaled = torch.where(inside[:, None], scaled, self.border.view(-1, 1, 1))
        return scaled.contiguous(memory_format=torch.channels_last)
