"""What decides which images a network sees and how they vary, as data: `[data]` and `[augment]` of a recipe. No torch.

Both sections mean the same for images held in memory and for image files.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from tyro.conf import arg

from residuum.data.policies import parse_policy
from residuum.errors import ConfigError, quoted
from residuum.validation import AtLeast, Within, check

SMALL_IMAGE = 64  # pixels; images whose sides are no longer are held in memory
LARGEST_SIDE = 1 << 14  # pixels of an image that goes into a network
_MOST_SIZES = 16


@dataclass(frozen=True)
class DataSettings:
    """Which images are trained on."""

    # dataset: digits, cifar10, cifar100, fashion-mnist; a folder of images; a list (.csv, .tsv, .json, .jsonl); .tar
    # shards; a .npz, .parquet or packed file; or hf: and a name on the Hugging Face hub
    path: Annotated[str, arg(aliases=("--data",))] = "digits"
    # share of the training images that is held out for validation where the data has no validation split; 0 holds out
    # none
    holdout: Annotated[float, Within("[0, 1)"), arg(aliases=("--holdout",))] = 0.1
    # height and width in pixels that images are brought to; where left out their own if all share a small one, else
    # 224 224
    image_size: Annotated[tuple[int, int] | None, AtLeast(1, LARGEST_SIDE), arg(aliases=("--image-size",))] = None
    # leave out image files that cannot be decoded instead of stopping at the first
    skip_bad_images: Annotated[bool, arg(aliases=("--skip-bad-images",))] = False
    # images that are scaled, in evaluation: share of the shorter side that the central crop keeps; 0 stretches the
    # whole image; where left out 0.875 for image files, 0 for images in memory
    crop: Annotated[float | None, Within("[0, 1]")] = None
    # how images are scaled
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    # mean of pixel values from 0 to 1, a number for each channel; where left out ImageNet's for image files, and their
    # own for images in memory
    mean: Annotated[tuple[float, ...] | None, Within("[0, 1]")] = None
    # deviation of pixel values, the same way
    std: Annotated[tuple[float, ...] | None, Within("(0, 1e9]")] = None
    # for classes of unequal numbers of images: loss weighs images of rare classes more, sampler draws them more often
    balance: Annotated[Literal["none", "loss", "sampler"], arg(aliases=("--balance",))] = "none"
    # how far it evens them out: 1 makes all classes count alike, 0 leaves them as they are
    balance_power: Annotated[float, Within("[0, 1]")] = 1.0

    def __post_init__(self) -> None:
        check(self, "data")
        if self.balance == "none" and self.balance_power != 1:
            raise ConfigError(
                f"data.balance_power is {self.balance_power:g}, but data.balance is none; set that to loss or sampler"
            )


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The steps come in this order: crop, shift, mirror, policy, erase, cut out."""

    # shares of an image's area, lowest and highest, that a random crop takes and scales to the image size; its sides
    # are as 3 to 4 up to 4 to 3; left out, images are not cropped
    crop_scale: tuple[float, float] | None = None
    # pixels that images are shifted by at most, up or down and left or right
    pad: Annotated[int, AtLeast(0, LARGEST_SIDE), arg(aliases=("--pad",))] = 0
    # what a shift brings in: the mean colour, or the image itself, mirrored at its edge
    border: Literal["mean", "reflect"] = "mean"
    # random mirrors half of the images, drawn anew each time; alternate mirrors an image in every other epoch
    # (2404.00498), half of them in the first
    flip: Annotated[Literal["none", "random", "alternate"], arg(aliases=("--flip",))] = "none"
    # trivial (TrivialAugment, 2103.10158), or rand:2:9 (RandAugment, 1909.13719) with 2 operations of
    # magnitude 9 out of 30
    policy: str | None = None
    # share of the images in which a box is erased (1708.04896)
    erase: Annotated[float, Within("[0, 1]")] = 0.0
    # side in pixels of a square that is cut out of each image around a random pixel (1708.04552); it may reach over
    # the edge
    cutout: Annotated[int, AtLeast(0, LARGEST_SIDE)] = 0
    # height and width in pixels that are trained on; those of evaluation where left out
    image_size: Annotated[tuple[int, int] | None, AtLeast(1, LARGEST_SIDE)] = None
    # sides in pixels that are trained on, each up to a share of the epochs, the last to the end: 128:0.5,160:0.8,224
    sizes: str | None = None
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
        if self.sizes is not None:
            parse_sizes(self.sizes)
            if self.image_size is not None:
                raise ConfigError("augment.sizes and augment.image_size both say what is trained on; leave one out")

    def size_in(self, epoch: int, epochs: int) -> tuple[int, int] | None:
        """Height and width that an epoch, counted from 0 of `epochs`, trains on; None for those of evaluation."""
        if self.sizes is None:
            return self.image_size
        side = next(side for side, until in parse_sizes(self.sizes) if epoch < round(until * epochs) or until == 1)
        return side, side

    @property
    def largest_size(self) -> tuple[int, int] | None:
        """Height and width of the largest images that are trained on; None for those of evaluation."""
        if self.sizes is None:
            return self.image_size
        side = max(side for side, _ in parse_sizes(self.sizes))
        return side, side


def parse_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Sides in pixels and the share of the run up to which each is trained on, 1 for the last; raises `ConfigError`."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        sides = [int(pair[0]) for pair in pairs]
        shares = [float(share) for _, share in pairs[:-1]] + [1.0]
        rising = all(a < b for a, b in pairwise([0.0, *shares]))
        if not rising or len(pairs[-1]) != 1 or len(pairs) > _MOST_SIZES:
            raise ValueError("not rising to the last, which has no share")
        if not all(1 <= side <= LARGEST_SIDE for side in sides):
            raise ValueError("no sides of images")
    except ValueError:
        raise ConfigError(
            f"augment.sizes is {quoted(text)}; it must be sides in pixels with rising shares of the run up to which "
            "they are used, and a last one to the end, such as 128:0.5,160:0.8,224"
        ) from None
    return tuple(zip(sides, shares, strict=True))
