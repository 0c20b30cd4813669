"""Who takes part: a network of each library, and networks from outside that are named by where they are made."""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from residuum.bench.workloads import Precision, Workload
from residuum.errors import BenchError, MissingExtraError, first_line, nearest, quoted
from residuum.extras import install
from residuum.factory import create
from residuum.memory import recompute
from residuum.presets import PRESETS, preset

OUT_OF_THE_BOX = "residuum:auto"  # as `residuum train` and `predict` run it, whatever the workload says
# Large matrix products: what the machine can do at all, in each precision.
REFERENCES: dict[str, Precision] = {"matmul:fp32": "fp32", "matmul:bf16": "bf16"}
RECOMPUTING = {f"residuum:{mode}": mode for mode in ("selective", "block", "stage")}
# Contender to the package that it needs.
PACKAGES = {
    "residuum": "torch",
    **dict.fromkeys(RECOMPUTING, "torch"),
    OUT_OF_THE_BOX: "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
}


@dataclass(frozen=True)
class Contender:
    """`name` is what the report calls it. `source` says where a network from outside is made, MODULE:CALLABLE or
    FILE.py:CALLABLE, and is empty for those of `PACKAGES`.
    """

    name: str
    source: str = ""


def contender_of(text: str) -> Contender:
    """One of `PACKAGES`, or a network from outside: MODULE:CALLABLE or FILE.py:CALLABLE, with NAME= before it or not.

    Raises `BenchError` or `MissingExtraError` for one that is not known, not installed or cannot be imported.
    """
    if text in PACKAGES:
        if find_spec(PACKAGES[text]) is None:
            raise MissingExtraError(f"{text} is not installed; install it with: {install('bench')}")
        return Contender(text)
    name, _, source = text.rpartition("=")
    place, _, attribute = source.rpartition(":")
    if not (place and attribute) or (not name and place == "residuum"):
        raise BenchError(
            f"there is no contender {quoted(text)}{nearest(text, PACKAGES)}; the contenders are {', '.join(PACKAGES)}, "
            "and networks from outside written NAME=MODULE:CALLABLE or NAME=FILE.py:CALLABLE"
        )
    outside(source)
    return Contender(name or attribute, source)


def contenders_of(texts: Sequence[str], baseline: str) -> tuple[Contender, ...]:
    """Those that are named, or all libraries that are installed.

    Raises `BenchError` where two have one name or the baseline is not among them.
    """
    found = [contender_of(text) for text in dict.fromkeys(texts)] or usual_contenders()
    names = [contender.name for contender in found]
    for name in names:
        if names.count(name) > 1 or (name in PACKAGES and Contender(name) not in found):
            raise BenchError(f"{quoted(name)} would be the name of two contenders; give one another: NAME={name}")
    if baseline not in names:
        raise BenchError(
            f"the baseline {quoted(baseline)} is not one of the contenders{nearest(baseline, names)}; add it to "
            f"--contenders, or let --baseline be one of {', '.join(names)}"
        )
    return tuple(found)


def usual_contenders() -> list[Contender]:
    """Those that take part unless others are named: each library that is installed, and this package by itself."""
    return [Contender(n) for n, package in PACKAGES.items() if n not in RECOMPUTING and find_spec(package) is not None]


def outside(source: str) -> Callable[..., Any]:
    """What makes a network from outside, imported. Modules are looked for in the current folder too.

    Raises `BenchError` where there is no such module, file or callable, or its import fails.
    """
    place, _, attribute = source.rpartition(":")
    try:
        if place.endswith(".py"):
            module = _from_file(Path(place))
        else:
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.append(here)
            module = import_module(place)
        found = getattr(module, attribute)
    except Exception as error:
        raise BenchError(f"{quoted(source)} cannot be imported ({type(error).__name__}: {first_line(error)})") from None
    if not callable(found):
        raise BenchError(f"{quoted(source)} is a {type(found).__name__}; it must be a callable that gives a network")
    return found  # type: ignore[no-any-return]


def _from_file(path: Path) -> Any:
    """A file as a module, run once in a process, with its folder on the path as `python FILE` has it."""
    name = f"residuum_contender_{path.stem}_{abs(hash(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def absent(contender: Contender, workload: Workload) -> str | None:
    """Why a contender has no part in a workload, or None where it has."""
    if contender.source:
        return None
    name = contender.name
    library = _LIBRARIES.get(name.partition(":")[0])
    if library is not None and not library.has(workload.model):
        return f"it has no {workload.model}"
    if name in RECOMPUTING and (workload.task == "infer" or workload.mode == "compiled"):
        return "it differs from residuum in eager training only"
    return None


def build(contender: Contender, model: str) -> nn.Module:
    """The contender's own network, with its own initial weights: (N, C, H, W) -> (N, num_classes).

    One from outside is made by a call with the preset's name, if the callable has a parameter without a default, and
    without arguments else.
    """
    if contender.source:
        make = outside(contender.source)
        network = make(model) if _wants_a_name(make) else make()
        if not isinstance(network, nn.Module):
            raise BenchError(f"{quoted(contender.source)} gave a {type(network).__name__}; it must give a network")
        return network
    network = _LIBRARIES[contender.name.partition(":")[0]].build(model)
    mode = RECOMPUTING.get(contender.name)
    return recompute(network, mode) if mode else network  # type: ignore[arg-type]


def _wants_a_name(make: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # of some written in C
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _in_torchvision(model: str) -> bool:
    import torchvision

    return model in torchvision.models.list_models(module=torchvision.models) and model in PRESETS


def _in_timm(model: str) -> bool:
    import timm

    return model in timm.list_models()


def _in_transformers(model: str) -> bool:
    config = PRESETS[model]
    same = {f: getattr(config, f) for f in ("depths", "block", "num_classes")}
    return config == PRESETS["resnet50"].replace(**same)


def _torchvision(model: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(model, weights=None)  # type: ignore[no-any-return]


def _timm(model: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(model, pretrained=False)
    return network


class _Logits(nn.Module):
    """Of a Hugging Face model, which wraps them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits  # type: ignore[no-any-return]


def _transformers(model: str) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = preset(model)
    fields: dict[str, Any] = {
        "layer_type": config.block,  # of the same names
        "depths": list(config.depths),
        "hidden_sizes": [stage.channels for stage in config.stages],
        "num_labels": config.num_classes,
    }
    return _Logits(ResNetForImageClassification(ResNetConfig(**fields)))


@dataclass(frozen=True)
class _Library:
    """Whether it has a preset's network, and that network."""

    has: Callable[[str], bool]
    build: Callable[[str], nn.Module]


_LIBRARIES = {
    "residuum": _Library(lambda model: model in PRESETS, create),
    "torchvision": _Library(_in_torchvision, _torchvision),
    "timm": _Library(_in_timm, _timm),
    "transformers": _Library(_in_transformers, _transformers),
}
