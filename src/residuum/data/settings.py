"""What decides which images a network sees and how they vary, as data: `[data]` and `[augment]` of a recipe. No torch.

Both sections mean the same for images held in memory and for image files.
"""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from residuum.errors import ConfigError, quoted
from residuum.validation import AtLeast, Within, check

SMALL_IMAGE = 64  # pixels; images whose sides are no longer are held in memory
LARGEST_SIDE = 1 << 14  # pixels of an image that goes into a network


@dataclass(frozen=True)
class DataSettings:
    """Which images are trained on."""

    # dataset: digits, cifar10, cifar100, fashion-mnist, or an image folder
    path: Annotated[str, arg(aliases=("--data",))] = "digits"
    # share of the training images that is held out for validation where the data has no validation split; 0 holds out
    # none
    holdout: Annotated[float, Within("[0, 1)"), arg(aliases=("--holdout",))] = 0.1
    # height and width in pixels that image files are brought to; where left out their own if all share a small one,
    # else 224 224
    image_size: Annotated[tuple[int, int] | None, AtLeast(1, LARGEST_SIDE), arg(aliases=("--image-size",))] = None
    # leave out image files that cannot be decoded instead of stopping at the first
    skip_bad_images: Annotated[bool, arg(aliases=("--skip-bad-images",))] = False

    def __post_init__(self) -> None:
        check(self, "data")


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The steps come in this order: crop, shift, mirror."""

    # shares of an image's area, lowest and highest, that a random crop takes and scales to the image size; its sides
    # are as 3 to 4 up to 4 to 3; left out, images are not cropped
    crop_scale: tuple[float, float] | None = None
    # pixels that images are shifted by at most, up or down and left or right; the border has the mean colour
    pad: Annotated[int, AtLeast(0, LARGEST_SIDE), arg(aliases=("--pad",))] = 0
    # mirror half of the images
    flip: Annotated[bool, arg(aliases=("--flip",))] = False

    def __post_init__(self) -> None:
        check(self, "augment")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(
                f"augment.crop_scale is {quoted(self.crop_scale)}; it must be two numbers in (0, 1], the lower first"
            )
