"""Networks as backbones of torchvision's detectors and segmenters."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from residuum.errors import ConfigError
from residuum.nn.resnet import ResNet


class Pyramid(nn.Module):
    """A feature pyramid (1612.03144) on a network's stages, as `torchvision.models.detection` takes a backbone.

    (N, C, H, W) -> a dict of maps of `out_channels` at the strides of `levels`, and `pool`, half the last. `levels` are
    those of `ResNet.features`: 0 is the stem, i the i-th stage; all stages are taken where it is left out.
    """

    def __init__(self, model: ResNet, out_channels: int = 256, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.body, self.out_channels = model, out_channels
        self.levels = model.check_levels(levels)
        channels = [model.feature_info[level].channels for level in self.levels]
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())

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
