"""Weights in and out: files that carry the network's config, and the files of other libraries.

A file of this package is safetensors with one key of metadata, `residuum`: a JSON object whose `config` is the
network's and whose `sha256` is that of its tensors; what else it says is the writer's. One key, because safetensors
writes several in no fixed order and equal weights shall be equal files.
"""

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, WeightsError, first_line
from residuum.files import write_text, write_whole
from residuum.nn.resnet import ResNet
from residuum.weights.detection import fitting_presets, infer_config
from residuum.weights.hubs import fetch, is_reference
from residuum.weights.layouts import LAYOUTS, check_sayable, recognise, rename, to_theirs

KEY = "residuum"
State = dict[str, Tensor]
# Where checkpoints keep their tensors, and what wrappers put before names.
NESTS = ("state_dict", "model", "net", "model_state_dict", "model_state", "state_dict_ema", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.bottom_up.", "backbone.body.", "backbone.")


# -- files of this package ---------------------------------------------------------------------------------------------


def save(model: ResNet, path: str | Path, **extra: Any) -> None:
    """Write a network's weights and buffers, its config and `extra` (anything JSON can say); raises `WeightsError`."""
    _write_ours(model.state_dict(), model.config, Path(path), extra)


def _write_ours(state: Mapping[str, Tensor], config: ResNetConfig, path: Path, extra: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    noted = {"config": config.to_dict(), "sha256": _digest(tensors)} | extra
    metadata = {KEY: json.dumps(noted)}
    write_whole(path, lambda partial: partial.write_bytes(to_bytes(tensors, metadata)), WeightsError)


def _digest(tensors: State) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save` noted beside the weights: `config` and the extras; raises `WeightsError`."""
    try:
        with safe_open(path, "pt") as file:
            noted = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from None
    if noted is None:
        raise WeightsError(
            f"{path} has no residuum config in it; only files that residuum saved carry one ('residuum convert' makes "
            "one of another library's weights)"
        )
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
        tensors = load_file(path)
        model = ResNet(ResNetConfig.from_dict(values["config"]))
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path} does not hold the network that it says: {first_line(error)}") from None
    _check_digest(path, tensors, values)
    return model


def _check_digest(path: str | Path, tensors: State, noted: dict[str, Any]) -> None:
    digest = _digest(tensors)
    if noted.get("sha256", digest) != digest:
        raise WeightsError(f"{path} is damaged: its tensors are not those that were saved; get the file again")


# -- files of all libraries --------------------------------------------------------------------------------------------


def read_state(path: str | Path) -> State:
    """The tensors of a file, with the names that they have there: safetensors, or a pickle of nothing but tensors.

    Pickles are read with `weights_only=True`. Raises `WeightsError`; a file that would run code is refused.
    """
    path = Path(path)
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin", "weights.safetensors")  # the last is a run's
        path = next((path / name for name in names if (path / name).exists()), path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; give a file, or a reference such as hf:OWNER/NAME")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                if KEY in (file.metadata() or {}):
                    _check_digest(path, tensors, read_metadata(path))
            return tensors_of(tensors, str(path))
        with warnings.catch_warnings(action="ignore"):  # what it warns of, it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be read as weights: {first_line(error)}") from None
    except Exception as error:  # on bytes that are no pickle its reader fails in ways of any kind
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise WeightsError(
                f"{path} holds more than tensors, and reading it would run code that came with it; ask its author for "
                "safetensors or for a plain state dict"
            ) from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged, or no plain checkpoint"
        raise WeightsError(
            f"{path} cannot be read as weights: {reason}; it must be safetensors or a state dict that torch.save wrote"
        ) from None
    return tensors_of(content, str(path))


def tensors_of(content: object, where: str) -> State:
    """The tensors of a checkpoint, dug out of what it is nested in, and freed of what wrappers put before the names."""
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in NESTS if isinstance(content.get(name), Mapping | nn.Module)), None)
        content = inner if inner is not None else {}
        if not content:
            break
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{where} holds no state dict; it must be one, or hold one under {', '.join(NESTS)}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    stripping = True
    while stripping:
        stripping = False
        for prefix in PREFIXES:
            if any(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                stripping = True
    return tensors


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `WeightsError` where a tensor holds what is no number."""
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise WeightsError(f"{where} holds NaN or infinity in {_some(bad)}; these weights are of no use")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did. Names are the network's own, but for `unexpected`, which are the source's."""

    source: str
    layout: str
    loaded: tuple[str, ...]
    renamed: dict[str, str]  # the source's name to ours, where they differ
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # of another shape, so not loaded
    notes: tuple[str, ...] = field(default=())  # what was adapted, in sentences

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.layout} layout, {len(self.loaded)} tensors loaded, {len(self.renamed)} renamed"]
        for what in ("missing", "unexpected", "reshaped"):
            names = getattr(self, what)
            if names:
                lines.append(f"{what}: {_some(names)}")
        return "\n".join([*lines, *self.notes])


def load_weights(model: ResNet, source: object, *, strict: bool = True) -> LoadReport:
    """Bring weights of torchvision, timm, Hugging Face, detectron2 or a CIFAR repository into a network.

    `source` is a path, a state dict, or a reference: `torchvision:IMAGENET1K_V2`, `timm:resnet50.a1_in1k`,
    `hf:microsoft/resnet-50`. The layout is recognised. A head of another number of classes is initialised anew; the
    first convolution is adapted to another number of image channels as timm does: summed for 1, repeated and rescaled
    for more. With `strict`, anything else that is missing, unexpected or of another shape raises `WeightsError`, and
    the network stays as it was; without, what fits is loaded and the report says the rest.
    """
    where, theirs = _open(source, model.config)
    check_finite(theirs, where)
    layout = recognise(theirs)
    mine = model.state_dict()
    names = rename(theirs, LAYOUTS[layout], mine)
    state = {new: theirs[old] for old, new in names.items() if new in mine}
    unexpected = [old for old in theirs if names.get(old) not in mine and not old.endswith("num_batches_tracked")]
    notes = _adapt(state, mine)
    if not model.config.num_classes and any(names.get(old, "").startswith("fc.") for old in unexpected):
        unexpected = [old for old in unexpected if not names.get(old, "").startswith("fc.")]
        notes.append("the head was left out: the network has none")
    reshaped = [name for name, value in state.items() if value.shape != mine[name].shape]
    for name in reshaped:
        del state[name]
    new_head = any(note.startswith("the head") for note in notes)
    missing = [name for name in mine if name not in state and name not in reshaped and not _tolerated(name, new_head)]
    if strict and (missing or unexpected or reshaped):
        raise WeightsError(_misfit(where, theirs, mine, missing, unexpected, reshaped))
    if new_head and model.config.num_classes:
        model.fc.reset_parameters()  # type: ignore[operator]
    model.load_state_dict(state, strict=False)
    renamed = {old: new for old, new in names.items() if new in state and old != new}
    return LoadReport(
        where, layout, tuple(state), renamed, tuple(missing), tuple(unexpected), tuple(reshaped), tuple(notes)
    )


def _open(source: object, config: ResNetConfig | None) -> tuple[str, State]:
    if isinstance(source, nn.Module | Mapping):
        return "the state dict", tensors_of(source, "the source")
    if not isinstance(source, str | Path):
        raise WeightsError(f"the source is a {type(source).__name__}; it must be a path, a state dict or a reference")
    path = fetch(source, config) if is_reference(source) else Path(source)
    return str(source), read_state(path)


def _tolerated(name: str, new_head: bool) -> bool:
    """Whether a tensor may be missing: a counter that no result depends on, or a head that starts anew."""
    return name.endswith("num_batches_tracked") or (new_head and name.startswith("fc."))


def _adapt(state: State, mine: State) -> list[str]:
    """Fit head and first convolution to the network in place, and say so."""
    notes = []
    head = state.get("fc.weight")
    if head is not None and "fc.weight" in mine:
        if head.ndim == 4:  # a 1x1 convolution
            head = state["fc.weight"] = head.flatten(1)
        if head.shape[0] != mine["fc.weight"].shape[0]:
            notes.append(
                f"the head of {head.shape[0]} classes was left out: the network has {mine['fc.weight'].shape[0]}, and "
                "its head was initialised anew"
            )
            for name in ("fc.weight", "fc.bias"):
                state.pop(name, None)
    for name in ("conv1.weight", "conv1.0.weight"):
        if name in state and name in mine and state[name].shape[1] != mine[name].shape[1]:
            before, after = state[name].shape[1], mine[name].shape[1]
            state[name] = adapt_channels(state[name], after)
            how = "summed" if after == 1 else "repeated and rescaled"
            notes.append(f"the first convolution was {how} from {before} to {after} image channels")
    return notes


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (out, in, k, k) for another number of image channels, as timm's `adapt_input_conv`."""
    before = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // before), 1, 1)[:, :channels]
    return (repeated * (before / channels)).to(weight.dtype)


def _misfit(
    where: str, theirs: State, mine: State, missing: list[str], unexpected: list[str], reshaped: list[str]
) -> str:
    parts = [f"{what} {_some(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
    parts += (
        [f"of another shape {_some(reshaped)} (the network's: {tuple(mine[reshaped[0]].shape)})"] if reshaped else []
    )
    try:
        names, differing = fitting_presets(infer_config(theirs))
        hint = f"the weights are nearest to preset {names[0]!r}" + (
            f" but for {', '.join(differing)}" * bool(differing)
        )
    except WeightsError:
        hint = "no preset is near"
    return f"{where} does not fit the network: {'; '.join(parts)}; {hint}. strict=False loads what fits"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- from file to file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspection:
    """What a weights file is: `presets` fit it, or the nearest does but for the fields in `differing`."""

    layout: str
    config: ResNetConfig
    presets: tuple[str, ...]
    differing: tuple[str, ...]
    parameters: int
    precisions: tuple[str, ...]
    not_finite: tuple[str, ...]


def inspect(source: str | Path) -> Inspection:
    """Look into a file or reference of any layout, without building its network; raises `WeightsError`."""
    _, state = _open(source, None)
    layout, config = recognise(state), _config_of(source, state)
    presets, differing = fitting_presets(infer_config(state))
    floating = {name: value for name, value in state.items() if value.is_floating_point()}
    return Inspection(
        layout,
        config,
        tuple(presets),
        tuple(differing),
        sum(value.numel() for name, value in floating.items() if "running_" not in name),
        tuple(sorted({str(value.dtype).removeprefix("torch.") for value in floating.values()})),
        tuple(name for name, value in floating.items() if not value.isfinite().all()),
    )


def convert(source: str | Path, target: str | Path, to: str) -> ResNetConfig:
    """Write a file's weights in the layout of another library; gives the config that was found.

    `to` is residuum, torchvision, timm, hf or detectron2. `target` ends in .safetensors, .pt or .pth; for hf it may be
    a folder, which `from_pretrained` reads. Raises `WeightsError`.
    """
    target = Path(target)
    if to not in TARGETS:
        raise WeightsError(f"there is no layout {to!r} to convert to; choose one of {', '.join(TARGETS)}")
    folder = to == "hf" and target.suffix == ""
    if not folder and target.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"{target} does not end in .safetensors, .pt or .pth; name the file so")
    where, theirs = _open(source, None)
    check_finite(theirs, where)
    config = _config_of(source, theirs)
    with torch.device("meta"):
        expected = ResNet(config).state_dict()
    names = rename(theirs, LAYOUTS[recognise(theirs)], expected)
    ours = {new: theirs[old].flatten(1) if new == "fc.weight" else theirs[old] for old, new in names.items()}
    for name in expected:
        if name.endswith("num_batches_tracked") and name not in ours:
            ours[name] = torch.tensor(0)
    wrong = [name for name in {**expected, **ours} if getattr(ours.get(name), "shape", None) != _shape(expected, name)]
    if wrong:
        raise WeightsError(f"{where} is not whole: missing or unexpected {_some(wrong)}")
    if to == "residuum" and target.suffix == ".safetensors":
        _write_ours(ours, config, target, {})
        return config
    state = in_layout(ours, config, to) if to != "residuum" else ours
    if folder:
        if target.exists():
            raise WeightsError(f"{target} exists already; choose another folder")
        target.mkdir(parents=True)
        write_text(target / "config.json", json.dumps(hugging_face_config(config), indent=2) + "\n", WeightsError)
        target = target / "model.safetensors"
    if target.suffix == ".safetensors":
        content = to_bytes({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
        write_whole(target, lambda partial: partial.write_bytes(content), WeightsError)
    else:
        write_whole(target, lambda partial: torch.save(state, partial), WeightsError)
    return config


TARGETS = ("residuum", "torchvision", "timm", "hf", "detectron2")


def in_layout(state: Mapping[str, Tensor], config: ResNetConfig, to: str) -> State:
    """Our weights under the names of `to`; raises `WeightsError` where that library has no such network."""
    to = "timm-v2" if to == "timm" and config.preact else to
    check_sayable(config, to)
    layout = LAYOUTS[to]
    named = {to_theirs(name, layout): value for name, value in state.items()}
    if to == "timm-v2" and "head.fc.weight" in named:
        named["head.fc.weight"] = named["head.fc.weight"][:, :, None, None]
    if to == "detectron2":  # its frozen norms do not count
        named = {name: value for name, value in named.items() if not name.endswith("num_batches_tracked")}
    return named


def _shape(state: State, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _config_of(source: str | Path, state: State) -> ResNetConfig:
    """What the source says itself: our metadata, or Hugging Face's config.json beside it; else what weights tell."""
    if not is_reference(source):
        path = Path(source)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                if KEY in (file.metadata() or {}):
                    return ResNetConfig.from_dict(read_metadata(path)["config"])
        beside = (path if path.is_dir() else path.parent) / "config.json"
        if beside.exists() and recognise(state) == "hf":
            try:
                return infer_config(state).replace(**_from_hugging_face(json.loads(beside.read_text("utf-8"))))
            except (ValueError, AttributeError, OSError) as error:
                raise WeightsError(f"{beside} cannot be read: {error}") from None
    return infer_config(state)


def _from_hugging_face(values: dict[str, Any]) -> dict[str, Any]:
    """What a config.json of Hugging Face tells and weights do not."""
    fields: dict[str, Any] = {"activation": values.get("hidden_act", "relu")}
    if values.get("downsample_in_first_stage"):
        fields |= {"first_stride": 2, "output_stride": 64}
    if values.get("downsample_in_bottleneck"):
        fields["stride_on"] = "1x1"
    return fields


def hugging_face_config(config: ResNetConfig) -> dict[str, Any]:
    """The config.json of a network that `check_sayable` allows."""
    labels = {str(i): f"LABEL_{i}" for i in range(config.num_classes)}
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": config.in_channels,
        "embedding_size": config.stem_channels[-1],
        "hidden_sizes": [stage.channels for stage in config.stages],
        "depths": list(config.depths),
        "layer_type": config.block,
        "hidden_act": config.activation,
        "downsample_in_first_stage": config.first_stride == 2,
        "downsample_in_bottleneck": config.stride_on == "1x1",
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }
