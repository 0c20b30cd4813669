"""residuum: the residual network family from one readable model and one config. Torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residuum.config import ResNetConfig as ResNetConfig
    from residuum.errors import BenchError as BenchError
    from residuum.errors import ConfigError as ConfigError
    from residuum.errors import DataError as DataError
    from residuum.errors import DeviceError as DeviceError
    from residuum.errors import DivergedError as DivergedError
    from residuum.errors import ExportError as ExportError
    from residuum.errors import MissingExtraError as MissingExtraError
    from residuum.errors import ResiduumError as ResiduumError
    from residuum.errors import RunError as RunError
    from residuum.errors import WeightsError as WeightsError
    from residuum.factory import create as create
    from residuum.inference.explain import Explanation as Explanation
    from residuum.inference.explain import explain as explain
    from residuum.inference.optimize import optimize_for_inference as optimize_for_inference
    from residuum.memory.checkpointing import recompute as recompute
    from residuum.nn.backbone import Encoder as Encoder
    from residuum.nn.backbone import Pyramid as Pyramid
    from residuum.nn.backbone import Segmentation as Segmentation
    from residuum.nn.freezing import freeze as freeze
    from residuum.nn.freezing import unfreeze as unfreeze
    from residuum.nn.resnet import ResNet as ResNet
    from residuum.preprocessing import Preprocessing as Preprocessing
    from residuum.presets import PRESETS as PRESETS
    from residuum.presets import list_presets as list_presets
    from residuum.presets import preset as preset
    from residuum.weights.converting import convert as convert
    from residuum.weights.converting import inspect as inspect
    from residuum.weights.detection import infer_config as infer_config
    from residuum.weights.files import load as load
    from residuum.weights.files import save as save
    from residuum.weights.loading import load_weights as load_weights
    from residuum.weights.pretrained import from_pretrained as from_pretrained
    from residuum.weights.pretrained import push_to_hub as push_to_hub
    from residuum.weights.pretrained import save_pretrained as save_pretrained

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "nn.backbone",
    "ExportError": "errors",
    "Explanation": "inference.explain",
    "BenchError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "DivergedError": "errors",
    "MissingExtraError": "errors",
    "PRESETS": "presets",
    "Preprocessing": "preprocessing",
    "Pyramid": "nn.backbone",
    "ResNet": "nn.resnet",
    "ResNetConfig": "config",
    "ResiduumError": "errors",
    "RunError": "errors",
    "Segmentation": "nn.backbone",
    "WeightsError": "errors",
    "convert": "weights.converting",
    "create": "factory",
    "explain": "inference.explain",
    "freeze": "nn.freezing",
    "from_pretrained": "weights.pretrained",
    "infer_config": "weights.detection",
    "inspect": "weights.converting",
    "list_presets": "presets",
    "load": "weights.files",
    "load_weights": "weights.loading",
    "optimize_for_inference": "inference.optimize",
    "preset": "presets",
    "push_to_hub": "weights.pretrained",
    "recompute": "memory.checkpointing",
    "save": "weights.files",
    "save_pretrained": "weights.pretrained",
    "unfreeze": "nn.freezing",
}
# Reached as attributes once the package is imported: `residuum.memory.recompute`.
_ROOMS = frozenset({
    "ablate", "bench", "cost", "data", "doctor", "evaluation", "export", "inference", "memory", "nn", "train",
    "weights",
})  # fmt: skip
__all__ = [
    "PRESETS",
    "BenchError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DivergedError",
    "Encoder",
    "Explanation",
    "ExportError",
    "MissingExtraError",
    "Preprocessing",
    "Pyramid",
    "ResNet",
    "ResNetConfig",
    "ResiduumError",
    "RunError",
    "Segmentation",
    "WeightsError",
    "convert",
    "create",
    "explain",
    "freeze",
    "from_pretrained",
    "infer_config",
    "inspect",
    "list_presets",
    "load",
    "load_weights",
    "optimize_for_inference",
    "preset",
    "push_to_hub",
    "recompute",
    "save",
    "save_pretrained",
    "unfreeze",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"residuum.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'residuum' has no attribute {name!r}")
    return getattr(import_module(f"residuum.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "__version__"]
