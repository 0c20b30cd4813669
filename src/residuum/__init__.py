"""residuum: the residual network family from one readable model and one config. Torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residuum.config import ResNetConfig as ResNetConfig
    from residuum.errors import ConfigError as ConfigError
    from residuum.errors import ResiduumError as ResiduumError
    from residuum.errors import WeightsError as WeightsError
    from residuum.inference.folding import optimize_for_inference as optimize_for_inference
    from residuum.memory.checkpointing import recompute as recompute
    from residuum.nn.backbone import Pyramid as Pyramid
    from residuum.nn.backbone import Segmentation as Segmentation
    from residuum.nn.freezing import freeze as freeze
    from residuum.nn.resnet import ResNet as ResNet
    from residuum.nn.resnet import create as create
    from residuum.presets import PRESETS as PRESETS
    from residuum.presets import preset as preset
    from residuum.weights.detection import infer_config as infer_config
    from residuum.weights.files import load as load
    from residuum.weights.files import load_weights as load_weights
    from residuum.weights.files import save as save

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "errors",
    "PRESETS": "presets",
    "Pyramid": "nn.backbone",
    "ResNet": "nn.resnet",
    "ResNetConfig": "config",
    "ResiduumError": "errors",
    "Segmentation": "nn.backbone",
    "WeightsError": "errors",
    "create": "nn.resnet",
    "freeze": "nn.freezing",
    "infer_config": "weights.detection",
    "load": "weights.files",
    "load_weights": "weights.files",
    "optimize_for_inference": "inference.folding",
    "preset": "presets",
    "recompute": "memory.checkpointing",
    "save": "weights.files",
}
__all__ = [
    "PRESETS",
    "ConfigError",
    "Pyramid",
    "ResNet",
    "ResNetConfig",
    "ResiduumError",
    "Segmentation",
    "WeightsError",
    "create",
    "freeze",
    "infer_config",
    "load",
    "load_weights",
    "optimize_for_inference",
    "preset",
    "recompute",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'residuum' has no attribute {name!r}")
    return getattr(import_module(f"residuum.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
