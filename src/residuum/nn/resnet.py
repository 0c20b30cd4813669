"""The network: stem, stages, head, built by one loop from a `ResNetConfig`."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, quoted
from residuum.nn.blocks import Block, PreactBlock
from residuum.nn.layers import ACTIVATIONS, BlurPool, antialias, conv, norm
from residuum.nn.sharing import Shared
from residuum.preprocessing import Preprocessing


class FeatureInfo(NamedTuple):
    """A level of `ResNet.features`: the module that puts it out, its channels, its stride to the image."""

    name: str
    channels: int
    stride: int


class Part(NamedTuple):
    """A part of a network: the stem, a stage or the head.

    `layers` are its own modules by their names in the network, in the order in which they run: of a stage that is the
    stage itself, whose `blocks` follow. `run` is its forward pass.
    """

    name: str
    layers: dict[str, nn.Module]
    run: Callable[[Tensor], Tensor]
    blocks: tuple[Block, ...] = ()


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


class ResNet(Shared):
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
        self.several_classes = False  # whether an image may be of several, so that each has a probability of its own
        # A pre-activation block begins with its own norm, so the stem has none and the head has one.
        block = PreactBlock if config.preact else Block
        self.conv1 = stem_convolutions(config)
        self.bn1 = nn.Identity() if config.preact else norm(config, config.stem_channels[-1])
        self.act1 = nn.Identity() if config.preact else ACTIVATIONS[config.activation]()
        self.maxpool = stem_pool(config)
        for number, stage in enumerate(config.stages, 1):
            self.add_module(f"layer{number}", Stage(block(config, plan) for plan in stage.blocks))
        self.norm = norm(config, config.num_features) if config.preact else nn.Identity()
        self.act = ACTIVATIONS[config.activation]() if config.preact else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = classifier(config)
        self._initialise()

    @property
    def stages(self) -> list[Stage]:
        """The stages in order."""
        return [getattr(self, f"layer{i}") for i in range(1, len(self.config.depths) + 1)]

    def parts(self) -> list[Part]:
        """The stem, the stages and the head, in the order in which they run: the network's anatomy for all others."""

        def named(*names: str) -> dict[str, nn.Module]:
            return {name: getattr(self, name) for name in names}

        stages = [
            # Somebody may have put another module in a stage's place, which has no blocks to tell of.
            Part(f"layer{i}", named(f"layer{i}"), s, tuple(s) if isinstance(s, nn.ModuleList | nn.Sequential) else ())  # type: ignore[arg-type]
            for i, s in enumerate(self.stages, 1)
        ]
        stem = Part("stem", named("conv1", "bn1", "act1", "maxpool"), self.stem)
        return [stem, *stages, Part("head", named("norm", "act", "avgpool", "dropout", "fc"), self.head)]

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The feature map before the pool: (N, in_channels, H, W) -> (N, num_features, ceil(H / s), ceil(W / s))."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.act(self.norm(x))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gives to logits, (N, num_classes); before the classifier, (N, num_features)."""
        x = self.dropout(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def stem(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, stem_width, ceil(H / stem_stride), ceil(W / stem_stride))."""
        return self.after_conv1(self.conv1(x))

    def after_conv1(self, x: Tensor) -> Tensor:
        """The rest of the stem: norm, activation, pool."""
        x = self.bn1(x)  # by one name, so that what came in is freed, where the activation is not in place too
        x = self.act1(x)
        return self.maxpool(x)  # type: ignore[no-any-return]

    def head(self, x: Tensor) -> Tensor:
        """The last stage's output to logits, (N, num_classes), or to pooled features, (N, num_features)."""
        return self.forward_head(self.act(self.norm(x)))

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """The levels of `features`: 0 is the stem before its pool, i the i-th stage.

        A level's map is (N, channels, ceil(H / stride), ceil(W / stride)).
        """
        config = self.config
        stem = FeatureInfo(
            "act1", config.stem_channels[-1], config.stem_stride // (1 if config.stem_pool == "none" else 2)
        )
        return [stem, *(FeatureInfo(f"layer{i}", s.channels, s.stride) for i, s in enumerate(config.stages, 1))]

    def features(self, x: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """The feature maps of some levels of `feature_info`, in rising order; of all stages where none are named.

        What comes after the last of them is not run. A pre-activation network's maps are before its final norm. Raises
        `ConfigError` for levels that it does not have.
        """
        wanted = self.check_levels(levels)
        outputs = []
        if wanted[0] == 0:
            x = self.act1(self.bn1(self.conv1(x)))
            outputs.append(x)
            x = self.maxpool(x) if wanted[-1] > 0 else x
        else:
            x = self.stem(x)
        for level, stage in enumerate(self.stages[: wanted[-1]], 1):
            x = stage(x)
            if level in wanted:
                outputs.append(x)
        return outputs

    def check_levels(self, levels: Sequence[int] | None) -> list[int]:
        """The levels that are meant, all stages where none are named, or `ConfigError` for others than there are."""
        most = len(self.config.depths)
        wanted = list(range(1, most + 1)) if levels is None else list(levels)
        if not wanted or wanted != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] <= most:
            raise ConfigError(f"levels is {quoted(levels)}; it must be rising numbers from 0 to {most}, at least one")
        return wanted

    # -- surgery -------------------------------------------------------------------------------------------------------

    @property
    def num_features(self) -> int:
        """Channels of the pooled features, which the classifier takes."""
        return self.config.num_features

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)
        # With `assign` weights take the place of a network's, on the meta device say: what is not in them goes along.
        like = next((t for t in state_dict.values() if t.is_floating_point()), None)
        for module in self.modules():
            if isinstance(module, BlurPool):
                module.reset_parameters(like if metadata.get("assign_to_params_buffers") else None)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in, of that many classes, or none where that is 0; `config` follows. As in timm."""
        like = next(self.parameters())
        self.config = self.config.replace(num_classes=num_classes)
        self.classes = None
        self.fc = classifier(self.config).to(like.device, like.dtype)

    def reset_parameters(self) -> None:
        """Start anew: with the same seed every parameter and buffer is that of a new network of this config.

        Raises `ConfigError` where a parametrisation or pruning stands between a parameter and its layer.
        """
        for name, _ in self.named_parameters():
            if ".parametrizations." in name or name.endswith("_orig"):
                raise ConfigError(f"{quoted(name)} is parametrised or pruned; undo that before reset_parameters")
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation of convolutions (1502.01852, fan out); branches start at 0 where the config says so."""
        if next(self.parameters()).is_meta:  # nothing is there to be filled, and it would take half the time
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():  # after the convolutions of all blocks have been filled
            if isinstance(module, Block) and self.config.zero_init_residual:
                module.zero_init()


def classifier(config: ResNetConfig) -> nn.Module:
    """`fc`: the pooled features to logits, or nothing where there are no classes."""
    return nn.Linear(config.num_features, config.num_classes) if config.num_classes else nn.Identity()
