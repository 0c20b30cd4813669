"""The network: stem, stages, head, built by one loop from a `ResNetConfig`."""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from residuum.config import ResNetConfig
from residuum.nn.blocks import ACTIVATIONS, Block, antialias, conv, norm
from residuum.preprocessing import Preprocessing


class FeatureInfo(NamedTuple):
    """What `ResNet.features` gives for one stage: the stage's name, its channels, its stride to the image."""

    name: str
    channels: int
    stride: int


def stem_convolutions(config: ResNetConfig) -> nn.Module:
    """`conv1`: one 7x7 or 3x3, or three 3x3 with norm and activation between (1812.01187); the first one strides."""
    widths = config.stem_channels
    if config.stem == "conv7":
        return conv(config, config.in_channels, widths[0], 7, 2)
    if config.stem == "conv3":
        return conv(config, config.in_channels, widths[0], 3)
    layers: list[nn.Module] = [conv(config, config.in_channels, widths[0], 3, 2)]
    for before, after in pairwise(widths):
        layers += [norm(config, before), ACTIVATIONS[config.activation](), conv(config, before, after, 3)]
    return nn.Sequential(*layers)


def stem_pool(config: ResNetConfig) -> nn.Module:
    """`maxpool`: halves the size by a max pool, or by a convolution in its place (2103.07579); or leaves it."""
    channels, filtered = config.stem_channels[-1], config.antialias != "none"
    if config.stem_pool == "none":
        return nn.Identity()
    if config.stem_pool == "conv":
        subsample: list[nn.Module] = [conv(config, channels, channels, 3, 1 if filtered else 2)]
        subsample += [antialias(config, 2)] if filtered else []
        after = [] if config.preact else [norm(config, channels), ACTIVATIONS[config.activation]()]
        return nn.Sequential(*subsample, *after)
    if config.stem_pool == "max0":  # differs where values below zero come in: no activation comes before
        return nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))
    if config.antialias == "blur":
        return nn.Sequential(nn.MaxPool2d(3, 1, 1), antialias(config, 2))
    return antialias(config, 2) if filtered else nn.MaxPool2d(3, 2, 1)


class Stage(nn.ModuleList):
    """Blocks in a row: (N, C, H, W) -> (N, channels, ceil(H / s), ceil(W / s)) with the stride s of the first."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class ResNet(nn.Module):
    """A residual network (1512.03385 and its family): (N, in_channels, H, W) -> (N, num_classes).

    Parameters have torchvision's names, and timm's where torchvision has no such part. A stage is an `nn.ModuleList`
    of blocks: `layer1`, `layer2`, ... No module holds a device: move the network with `.to`.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        # What its weights were trained for, where that is known: names of the classes, and what happens to images.
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        width = config.stem_channels[-1]
        self.conv1 = stem_convolutions(config)
        # A pre-activation block begins with its own norm, so the stem has none and the head has one.
        self.bn1 = nn.Identity() if config.preact else norm(config, width)
        self.act1 = nn.Identity() if config.preact else ACTIVATIONS[config.activation]()
        self.maxpool = stem_pool(config)
        for info, stage in zip(self.feature_info, config.stages, strict=True):
            self.add_module(info.name, Stage(Block(config, plan) for plan in stage.blocks))
        self.norm = norm(config, config.num_features) if config.preact else nn.Identity()
        self.act = ACTIVATIONS[config.activation]() if config.preact else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(config.num_features, config.num_classes) if config.num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Of each stage, whose output is (N, channels, ceil(H / stride), ceil(W / stride))."""
        return [FeatureInfo(f"layer{i}", s.channels, s.stride) for i, s in enumerate(self.config.stages, 1)]

    @property
    def stages(self) -> list[Stage]:
        """The stages in order."""
        return [getattr(self, f"layer{i}") for i in range(1, len(self.config.depths) + 1)]

    def reset_parameters(self) -> None:
        """He initialisation of convolutions (1502.01852, fan out); branches start at 0 where the config says so."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():  # after the convolutions of all blocks have been filled
            if isinstance(module, Block) and self.config.zero_init_residual:
                module.zero_init()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)

    def stem(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, stem_width, ceil(H / stem_stride), ceil(W / stem_stride))."""
        return self.after_conv1(self.conv1(x))

    def after_conv1(self, x: Tensor) -> Tensor:
        """The rest of the stem: norm, activation, pool."""
        x = self.bn1(x)  # by that name, so that what came in is freed
        return self.maxpool(self.act1(x))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, as `feature_info` says; a pre-activation net's are before its final norm."""
        outputs = [self.stem(x)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]

    def head(self, x: Tensor) -> Tensor:
        """The last stage's output to logits, (N, num_classes), or to pooled features, (N, num_features)."""
        pooled = self.act(self.norm(x)).mean((2, 3))
        return self.fc(self.dropout(pooled))  # type: ignore[no-any-return]
