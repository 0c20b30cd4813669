"""Weights in and out: `read_checkpoint` and `load` of any source, `save` to a file that carries the network's config.

A file of this package is safetensors with one key of metadata, `residuum`: a JSON object whose `config` is the
network's and whose `sha256` is that of its tensors; `classes`, `preprocessing` and what else it says are the writer's.
One key, because safetensors writes several in no fixed order and equal weights shall be equal files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, WeightsError, quoted, shortened
from residuum.files import write_whole
from residuum.nn.resnet import ResNet
from residuum.nn.wrapping import unwrapped
from residuum.preprocessing import Preprocessing
from residuum.weights.checkpoint import (
    Checkpoint,
    Fit,
    State,
    Undrawn,
    check_finite,
    check_kinds,
    expected_state,
    fit,
    not_finite,
    some,
    unlike,
)
from residuum.weights.hubs import Fetch, hub_folder, is_reference, torchvision_weights
from residuum.weights.networks import Network, choose
from residuum.weights.published import Said, beside, check_classes
from residuum.weights.reading import KEY, LONGEST_JSON, file_of, parse_json, read_file, shown
from residuum.weights.surgery import whole_network

__all__ = ["Checkpoint", "load", "read_checkpoint", "read_metadata", "save"]


# -- in ----------------------------------------------------------------------------------------------------------------


def read_checkpoint(
    source: object, *, prefix: str | None = None, config: ResNetConfig | None = None, fetch: Fetch | None = None
) -> Checkpoint:
    """The weights in a file, run folder, folder of another library, state dict, module or reference.

    References are `torchvision:resnet50.IMAGENET1K_V2`, `timm:resnet50.a1_in1k` and `hf:microsoft/resnet-50`; `config`
    says which of torchvision's networks is meant where the reference does not. `prefix` names one of several networks
    in a file, as the error that refuses them lists them. `fetch` says how repositories of the hub are fetched. Raises
    `WeightsError`, and `MissingExtraError` where a download needs a library that is not installed.
    """
    if isinstance(source, nn.Module):
        return _of_module(source, prefix)
    if isinstance(source, Mapping):
        network, notes = choose(source, "the state dict", prefix)
        return _checkpoint(network, "the state dict", Said(), notes)
    if not isinstance(source, str | Path):
        raise WeightsError(f"the source is {quoted(source)}; it must be a path, a state dict or a reference")
    if is_reference(source) and not _is_there(source):
        return _of_reference(str(source), prefix, config, fetch or Fetch())
    path = file_of(Path(source))
    return _of_file(path, shown(source), prefix)


def _is_there(source: object) -> bool:
    try:
        return Path(str(source)).exists()
    except (OSError, ValueError):
        return False


def _of_module(module: nn.Module, prefix: str | None) -> Checkpoint:
    model = unwrapped(module)
    where = "the network"
    if isinstance(model, ResNet) and prefix is None:
        network = Network("", "torchvision", dict(model.state_dict()), ())
        said = Said(model.config.to_dict(), model.classes, model.preprocessing)
        return _checkpoint(network, where, said, [])
    network, notes = choose(module, where, prefix)
    return _checkpoint(network, where, Said(), notes)


def _of_reference(reference: str, prefix: str | None, config: ResNetConfig | None, fetch: Fetch) -> Checkpoint:
    library, _, name = reference.partition(":")
    if library == "torchvision":
        state, said = torchvision_weights(name, config)
        network, notes = choose(state, reference, prefix)
        return _checkpoint(network, reference, said, notes)
    folder, repository = hub_folder(reference, fetch)
    return _of_file(file_of(folder), reference, prefix, repository)


def _of_file(path: Path, where: str, prefix: str | None, repository: str = "") -> Checkpoint:
    content = read_file(path)
    if content.noted is not None and prefix is None:
        return _ours(content.tree, content.noted, where)  # type: ignore[arg-type]
    network, notes = choose(content.tree, where, prefix)
    return _checkpoint(network, where, beside(path, network.layout, repository), notes)


def _checkpoint(network: Network, where: str, said: Said, notes: list[str]) -> Checkpoint:
    """A checkpoint whose classes and preprocessing are those that are said, as far as they fit its tensors."""
    check_kinds(network.tensors, where)
    outside = [name for name in network.beside if not name.endswith(("num_batches_tracked",))]
    if outside:
        notes = [*notes, f"tensors beside the network ({len(outside)}) were left out: {some(outside)}"]
    if said.sha256 is not None and said.sha256 != digest(network.tensors):
        raise WeightsError(f"{where} is damaged: its tensors are not those that were saved; get the file again")
    return Checkpoint(
        network.tensors, network.layout, said.classes, said.preprocessing, where, said.fields, tuple(notes),
        several_classes=said.several_classes,
    )  # fmt: skip


def _ours(tensors: State, noted: str, where: str) -> Checkpoint:
    values = _metadata(noted, where, len(tensors))
    try:
        config = ResNetConfig.from_dict(values["config"])
        classes = check_classes(values.get("classes"), config)
        said = values.get("preprocessing")
        preprocessing = None if said is None else Preprocessing.from_dict(said)
    except (ConfigError, TypeError) as error:
        raise WeightsError(f"the metadata of {where} is damaged ({error})") from None
    # Names and shapes first: a digest of what is not the network says nothing.
    check_kinds(tensors, where)
    expected = expected_state(config, tensors, where)
    wrong = unlike(tensors, expected)
    if wrong:
        raise WeightsError(f"{where} does not hold the network that it says: {wrong}")
    noted_digest = values.get("sha256")
    if noted_digest is not None and noted_digest != digest(tensors):
        raise WeightsError(f"{where} is damaged: its tensors are not those that were saved; get the file again")
    several = values.get("several_classes") is True
    return Checkpoint(tensors, "torchvision", classes, preprocessing, where, config.to_dict(), (), values, several)


def _metadata(noted: str, where: str, count: int) -> dict[str, Any]:
    """What `save` noted; raises `WeightsError` where it cannot be that of a file with so many tensors."""
    try:
        values = parse_json(noted)
        depths = values["config"].get("depths", ())
        if sum(depths) > count or not all(type(n) is int and n > 0 for n in depths):
            raise ValueError("its config is of another network")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the metadata of {where} is damaged ({shortened(str(error), 100)})") from None
    return values  # type: ignore[no-any-return]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save` noted beside the weights: config, classes, preprocessing and the extras; raises `WeightsError`."""
    checkpoint = _of_file(file_of(Path(path)), shown(path), None)
    if not checkpoint.metadata:
        raise WeightsError(
            f"{shown(path)} has no residuum config in it; only files that residuum saved carry one ('residuum convert' "
            "makes one of another library's weights)"
        )
    return dict(checkpoint.metadata)


def load(source: object, *, prefix: str | None = None, fetch: Fetch | None = None) -> ResNet:
    """The network of any source that `read_checkpoint` reads, in evaluation mode, with `classes` and `preprocessing`.

    The config is what the source says, or what its weights tell. Raises `WeightsError`.
    """
    checkpoint = read_checkpoint(source, prefix=prefix, fetch=fetch)
    state = checkpoint.tensors  # of a file of ours they were compared with its config
    if not checkpoint.metadata:
        state = fit_whole(state, checkpoint.layout, checkpoint.config, checkpoint.source).state
    with Undrawn():
        model = ResNet(checkpoint.config)
    if checkpoint.metadata:
        check_finite(state, model.state_dict(), checkpoint.source)
    model.load_state_dict(state, strict=False)
    take_over(model, checkpoint, head="fc.weight" in state)
    return model.eval()


def take_over(model: ResNet, checkpoint: Checkpoint, *, head: bool, new_head: bool = False) -> None:
    """Give a network the preprocessing of its weights, and their classes where it has their head.

    What is not for its image channels or not as many as its classes is left; a new head has no names of classes.
    """
    classes, preprocessing = checkpoint.classes, checkpoint.preprocessing
    if preprocessing is not None and preprocessing.channels == model.config.in_channels:
        model.preprocessing = preprocessing
    if head:
        model.several_classes = checkpoint.several_classes
    if head or new_head:
        fits = head and classes is not None and len(classes) == model.config.num_classes
        model.classes = classes if fits else None


def fit_whole(tensors: Mapping[str, Tensor], layout: str, config: ResNetConfig, where: str) -> Fit:
    """How tensors go into their own network, none missing and none left; raises `WeightsError`."""
    found = fit(tensors, layout, expected_state(config, tensors, where), where, own=True)
    wrong = [*found.missing, *found.unexpected, *found.reshaped]
    if wrong:
        raise WeightsError(
            f"{where} does not hold the network that it says, or not the whole of it: missing, unexpected or of "
            f"another shape {some(wrong)}"
        )
    return found


# -- out ---------------------------------------------------------------------------------------------------------------


def save(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    **extra: Any,
) -> None:
    """Write a network's weights and buffers and its config to one file, which `load` builds it from.

    `classes` are the names of its classes, in order, and `preprocessing` says what happens to images before it; where
    they are left out the network's own are written, if it has any. `extra` is whatever else JSON can say; it comes back
    by `read_metadata`. Wrappers (DataParallel, DDP, torch.compile) are taken off; a plain new classifier or first
    convolution is written into the config. Raises `WeightsError`, before anything is written, for a network that its
    config does not describe, or that has hooks, pruning, parametrisations, NaN or infinity in it.
    """
    config, state = whole_network(model)
    network = unwrapped(model)
    if classes is None and isinstance(network, ResNet) and len(network.classes or ()) == config.num_classes:
        classes = network.classes
    if preprocessing is None and isinstance(network, ResNet):
        theirs = network.preprocessing
        preprocessing = theirs if theirs is not None and theirs.channels == config.in_channels else None
    if isinstance(network, ResNet) and network.several_classes:
        extra = {"several_classes": True} | extra
    write_ours(state, config, Path(path), classes, preprocessing, extra)


def write_ours(
    state: Mapping[str, Tensor],
    config: ResNetConfig,
    path: Path,
    classes: Sequence[str] | None,
    preprocessing: Preprocessing | None,
    extra: Mapping[str, Any],
) -> None:
    """Write a file of ours; raises `WeightsError` for what `load` would refuse."""
    tensors = to_write(state)
    noted: dict[str, Any] = {"config": config.to_dict(), "sha256": digest(tensors)}
    try:
        if classes is not None:
            noted["classes"] = check_classes(classes, config)
        if preprocessing is not None:
            if preprocessing.channels != config.in_channels:
                raise ConfigError(
                    f"preprocessing has {preprocessing.channels} channels, but the network {config.in_channels}"
                )
            noted["preprocessing"] = preprocessing.to_dict()
        taken = sorted(set(extra) & {"config", "sha256"})
        if taken:
            raise ConfigError(f"{taken[0]} is written by residuum itself; give it another name")
        text = json.dumps(noted | dict(extra))
    except (ConfigError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"nothing was saved: {shortened(str(error), 300)}") from None
    if len(text) > LONGEST_JSON:
        raise WeightsError(f"nothing was saved: what goes with the weights is over {LONGEST_JSON} characters long")
    write_whole(path, lambda partial: partial.write_bytes(to_bytes(tensors, {KEY: text})), WeightsError)


def to_write(state: Mapping[str, Tensor]) -> State:
    """Weights as safetensors writes them: dense, on the CPU, each in memory of its own, also where layers share one.

    Raises `WeightsError` for NaN and infinity.
    """
    tensors: State = {}
    places: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in places and tensor.numel() else tensor
        places.add(place)
    bad = not_finite(tensors)
    if bad:
        raise WeightsError(f"nothing was saved: the network holds NaN or infinity in {some(bad)}")
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors and their names, as hexadecimal digits."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
