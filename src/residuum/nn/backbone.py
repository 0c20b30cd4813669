"""Networks as backbones of torchvision's detectors and segmenters, and as encoders of segmentation-models-pytorch."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from residuum.errors import ConfigError, quoted
from residuum.nn.resnet import ResNet

Extra = Literal["pool", "p6p7"]


class Pyramid(nn.Module):
    """A feature pyramid (1612.03144) on a network's stages, as `torchvision.models.detection` takes a backbone.

    (N, C, H, W) -> a dict of maps of `out_channels` at the strides of `levels`, named 0, 1 and so on, and smaller ones.
    `levels` are those of `ResNet.features`: 0 is the stem, i the i-th stage; all stages are taken where it is left out.
    `extra` says what comes on top: `pool`, half the last map, for Faster, Mask and Keypoint R-CNN; or `p6` and `p7` by
    convolutions, each half the one before, for RetinaNet (1708.02002) and FCOS, which take `levels=[2, 3, 4]`.
    """

    def __init__(
        self, model: ResNet, out_channels: int = 256, levels: Sequence[int] | None = None, extra: Extra = "pool"
    ) -> None:
        super().__init__()
        if extra not in get_args(Extra):
            raise ConfigError(f"extra is {quoted(extra)}; it must be one of {', '.join(get_args(Extra))}")
        top = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(out_channels, out_channels)
        self.body, self.out_channels = model, out_channels
        self.levels = model.check_levels(levels)
        channels = [model.feature_info[level].channels for level in self.levels]
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=top)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body.features(x, self.levels)
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(n), feature) for n, feature in enumerate(features)))
        return maps


class Segmentation(nn.Module):
    """A network as `torchvision.models.segmentation` takes a backbone: {"out": last stage, "aux": the one before}.

    `channels` and `aux_channels` are what the heads have to take. Build the network with `output_stride=8` or 16.
    """

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        if len(model.stages) < 2:
            raise ConfigError("a segmentation backbone needs at least 2 stages: the last but one is for the side head")
        self.body, last = model, len(model.stages)
        self.levels = [last - 1, last]
        self.aux_channels, self.channels = (info.channels for info in model.feature_info[-2:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        aux, out = self.body.features(x, self.levels)
        return OrderedDict(out=out, aux=aux)


class Encoder(nn.Module):
    """A network as segmentation-models-pytorch takes an encoder: (N, C, H, W) -> `depth` + 1 maps.

    The first is the image itself, map i has stride 2^i, or the network's `output_stride` where that is less, and
    `out_channels[i]` channels. What comes after the last map is not run. Raises `ConfigError` for a network whose maps
    have other strides, as those for small images have, or with fewer than `depth` of them.
    """

    def __init__(self, model: ResNet, depth: int = 5) -> None:
        super().__init__()
        info, most = model.feature_info, model.feature_info[-1].stride
        if not 1 <= depth <= len(info):
            raise ConfigError(f"depth is {quoted(depth)}; this network has maps for 1 to {len(info)}")
        for i, level in enumerate(info[:depth], 1):
            if level.stride != min(2**i, most):
                raise ConfigError(
                    f"an encoder's map {i} has stride {min(2**i, most)}, and this network's has {level.stride}; take "
                    "one with a stem for large images, such as resnet50"
                )
        self.body, self.depth = model, depth
        self.out_channels = [model.config.in_channels, *(level.channels for level in info[:depth])]
        self.output_stride = info[depth - 1].stride

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, *self.body.features(x, range(self.depth))]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Asked when a model is built; raises `ConfigError` for other channels than the network was made with."""
        if in_channels != self.out_channels[0]:
            raise ConfigError(
                f"the encoder's network takes {self.out_channels[0]} channels, the model {in_channels}; create the "
                f"network with in_channels={in_channels}, which adapts its weights"
            )

    def make_dilated(self, output_stride: int) -> None:
        """Asked when a model is built; raises `ConfigError` for another stride than the network was made with."""
        if output_stride != self.output_stride:
            raise ConfigError(
                f"the encoder's network has output_stride {self.output_stride}, the model {output_stride}; create the "
                f"network with output_stride={output_stride}"
            )
