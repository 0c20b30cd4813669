"""`create`: a network by name or config, with or without weights. Torch is imported when it is called."""

from typing import TYPE_CHECKING, Any

from residuum.config import ResNetConfig
from residuum.presets import preset

if TYPE_CHECKING:
    from residuum.nn.resnet import ResNet


def create(architecture: str | ResNetConfig, *, weights: Any = None, **overrides: Any) -> "ResNet":
    """The network of a preset or config, with fields changed: `create("resnet50", num_classes=10, width=0.5)`.

    `weights` is what `load_weights` takes: `create("resnet50", weights="torchvision:IMAGENET1K_V2", num_classes=10)`
    keeps the backbone and starts a head of 10 classes. The network is in training mode. Raises `ConfigError`, before
    any tensor exists, for an unknown preset or a field that is wrong, and `WeightsError` for weights that do not fit.
    """
    config = preset(architecture) if isinstance(architecture, str) else architecture
    config = config.replace(**overrides)
    from residuum.nn.resnet import ResNet

    model = ResNet(config)
    if weights is not None:
        from residuum.weights.loading import load_weights

        load_weights(model, weights)
    return model
