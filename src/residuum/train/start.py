"""What weights that training starts from say for a recipe: the network, and how it wants images looked at."""

from typing import Any

from residuum.config import ResNetConfig
from residuum.data.catalog import Catalog
from residuum.errors import ConfigError, quoted
from residuum.presets import preset
from residuum.weights.checkpoint import Checkpoint
from residuum.weights.detection import fitting_presets
from residuum.weights.files import read_checkpoint
from residuum.weights.published import UNSEEN

# What training alone looks at, or what `fitting_presets` sees in the channels: no other network for it.
_FREE = frozenset({"width", "dropout", "stochastic_depth", "stochastic_depth_mode", "zero_init_residual"})


def fields_of_weights(weights: str, prefix: str | None, model: str | None, catalog: Catalog) -> dict[str, Any]:
    """What weights say for a recipe on some data, by dotted name: the network, image size, mean and deviation.

    `model` is the preset that was asked for, if any. Raises `ConfigError` where the weights are of another one, and
    `WeightsError` for weights that cannot be read.
    """
    checkpoint = read_checkpoint(weights, prefix=prefix, config=preset(model) if model is not None else None)
    config = checkpoint.config if model is None else _named(checkpoint, model)
    fields: dict[str, Any] = {
        "model": config.replace(in_channels=catalog.channels, num_classes=len(catalog.classes)),
        "finetune.weights": weights,
        "finetune.prefix": prefix,
    }
    look = checkpoint.preprocessing
    if look is None:
        return fields
    fields |= {"data.mean": look.mean, "data.std": look.std}
    if not (catalog.in_memory and catalog.image_size == look.image_size):
        # What small images show fills them, so they are scaled as a whole.
        crop = 0.0 if catalog.in_memory else look.crop
        fields |= {
            "data.image_size": look.image_size,
            "data.crop": crop,
            "data.interpolation": look.interpolation,
        }
    return fields


def _named(checkpoint: Checkpoint, model: str) -> ResNetConfig:
    """The config of the preset `model`, which the weights fit; raises `ConfigError` where they do not."""
    config, wanted = checkpoint.config, preset(model)
    names, differing = fitting_presets(config)
    if model not in names:
        held = names[0] if not differing else f"a network nearest to {names[0]}, with other {', '.join(differing)}"
        raise ConfigError(f"{checkpoint.source} holds {held}, and no {model}; leave the model out, or take its weights")
    for name in sorted(UNSEEN - _FREE):
        theirs, asked = getattr(config, name), getattr(wanted, name)
        if name in checkpoint.said and theirs != asked:
            raise ConfigError(
                f"{checkpoint.source} holds a network with {name} {quoted(theirs)}, and {model} has {quoted(asked)}; "
                "leave the model out"
            )
    return wanted.replace(width=config.width)
