"""What decides which images a network sees and how they vary, as data: `[data]` and `[augment]` of a recipe. No torch.

Both sections mean the same for images held in memory and for image files.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from residuum.data.policies import parse_policy
from residuum.errors import ConfigError, quoted
from residuum.validation import AtLeast, Within, check

SMALL_IMAGE = 64  # pixels; images whose sides are no longer are held in memory
LARGEST_SIDE = 1 << 14  # pixels of an image that goes into a network


@dataclass(frozen=True)
class DataSettings:
    """Which images are trained on."""

    # dataset: digits, cifar10, cifar100, fashion-mnist; a folder of images; a list (.csv, .tsv, .json, .jsonl); .tar
    # shards; a .npz, .parquet or packed file; or hf: and a name on the Hugging Face hub
    path: Annotated[str, arg(aliases=("--data",))] = "digits"
    # share of the training images that is held out for validation where the data has no validation split; 0 holds out
    # none
    holdout: Annotated[float, Within("[0, 1)"), arg(aliases=("--holdout",))] = 0.1
    # height and width in pixels that image files are brought to; where left out their own if all share a small one,
    # else 224 224
    image_size: Annotated[tuple[int, int] | None, AtLeast(1, LARGEST_SIDE), arg(aliases=("--image-size",))] = None
    # leave out image files that cannot be decoded instead of stopping at the first
    skip_bad_images: Annotated[bool, arg(aliases=("--skip-bad-images",))] = False
    # image files in evaluation: share of the shorter side that the central crop keeps; 0 stretches the whole image;
    # 0.875 where left out
    crop: Annotated[float | None, Within("[0, 1]")] = None
    # image files: how they are scaled
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    def __post_init__(self) -> None:
        check(self, "data")


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The steps come in this order: crop, shift, mirror, policy, erase."""

    # shares of an image's area, lowest and highest, that a random crop takes and scales to the image size; its sides
    # are as 3 to 4 up to 4 to 3; left out, images are not cropped
    crop_scale: tuple[float, float] | None = None
    # pixels that images are shifted by at most, up or down and left or right; the border has the mean colour
    pad: Annotated[int, AtLeast(0, LARGEST_SIDE), arg(aliases=("--pad",))] = 0
    # mirror half of the images
    flip: Annotated[bool, arg(aliases=("--flip",))] = False
    # image files: trivial (TrivialAugment, 2103.10158), or rand:2:9 (RandAugment, 1909.13719) with 2 operations of
    # magnitude 9 out of 30
    policy: str | None = None
    # image files: share of them in which a box is erased (1708.04896)
    erase: Annotated[float, Within("[0, 1]")] = 0.0
    # image files: height and width in pixels that are trained on; those of evaluation where left out
    image_size: Annotated[tuple[int, int] | None, AtLeast(1, LARGEST_SIDE)] = None
    # views of each image in an epoch (1901.09335), in one batch where that is possible; an epoch stays as long, with
    # as many fewer images
    repeats: Annotated[int, AtLeast(1, 1000)] = 1

    def __post_init__(self) -> None:
        check(self, "augment")
        if self.policy is not None:
            parse_policy(self.policy)
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(
                f"augment.crop_scale is {quoted(self.crop_scale)}; it must be two numbers in (0, 1], the lower first"
            )
