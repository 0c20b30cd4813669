"""Weights on disk: safetensors files that carry the network's config.

The metadata has one key, `residuum`: a JSON object whose `config` is the network's; what else it says is the writer's.
One key, because safetensors writes several in no fixed order and equal weights shall be equal files.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, WeightsError, first_line
from residuum.files import write_whole
from residuum.nn.resnet import ResNet

KEY = "residuum"


def save(model: ResNet, path: str | Path, **extra: Any) -> None:
    """Write a network's weights and buffers, its config and `extra` (anything JSON can say); raises `WeightsError`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {KEY: json.dumps({"config": model.config.to_dict()} | extra)}
    write_whole(Path(path), lambda partial: partial.write_bytes(to_bytes(tensors, metadata)), WeightsError)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save` noted beside the weights: `config` and the extras; raises `WeightsError`."""
    try:
        with safe_open(path, "pt") as file:
            noted = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from None
    if noted is None:
        raise WeightsError(f"{path} has no residuum config in it; only files that residuum saved carry one")
    try:
        values: dict[str, Any] = json.loads(noted)
        ResNetConfig.from_dict(values["config"])
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the metadata of {path} is damaged ({error})") from None
    return values


def load(path: str | Path) -> ResNet:
    """The network of a file that `save` wrote, built from the file alone; raises `WeightsError`."""
    values = read_metadata(path)
    try:
        model = ResNet(ResNetConfig.from_dict(values["config"]))
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path} does not hold the network that it says: {first_line(error)}") from None
    return model
