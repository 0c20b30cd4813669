"""Weights of others into a network that is there already: `load_weights`, and its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from residuum.errors import WeightsError, quoted
from residuum.nn.resnet import ResNet
from residuum.nn.wrapping import unwrapped
from residuum.weights.checkpoint import Checkpoint, Fit, fit, some
from residuum.weights.detection import fitting_presets, infer_config
from residuum.weights.files import read_checkpoint, take_over


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did. Names are the network's own, but for `unexpected`, which are the source's."""

    # where the weights come from
    source: str
    # whose names they have
    layout: str
    # parameters and buffers that were taken
    loaded: tuple[str, ...]
    renamed: dict[str, str]  # the source's name to ours, where they differ
    # those of the network that the source does not have
    missing: tuple[str, ...]
    # those of the source that the network does not have
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # of another shape, so not loaded
    notes: tuple[str, ...] = ()  # what was chosen and adapted, in sentences

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.layout} layout, {len(self.loaded)} tensors loaded, {len(self.renamed)} renamed"]
        left_out = {
            "missing, so as they were": self.missing,
            "unexpected, so not loaded": self.unexpected,
            "of another shape, so not loaded": self.reshaped,
        }
        lines += [f"{what}: {some(names)}" for what, names in left_out.items() if names]
        return "\n".join([*lines, *self.notes])


def load_weights(model: nn.Module, source: object, *, strict: bool = True, prefix: str | None = None) -> LoadReport:
    """Bring weights of torchvision, timm, Hugging Face, detectron2 or a CIFAR repository into a network.

    `source` is whatever `read_checkpoint` reads: a path, a state dict, a module, or a reference
    (`torchvision:IMAGENET1K_V2`, `timm:resnet50.a1_in1k`, `hf:microsoft/resnet-50`). The layout and what stands before
    the names are recognised; `prefix` names one of several networks in a file. A head of another number of classes is
    initialised anew; a source without a head leaves the network's as it is; the first convolution is adapted to another
    number of image channels as timm does: summed for 1, repeated and rescaled for more. With `strict`, anything else
    that is missing, unexpected or of another shape raises `WeightsError`; without, what fits is loaded and the report
    says the rest. A network on the meta device is brought to the CPU first. Where an error is raised the network stays
    as it was. Classes and preprocessing of the weights become the network's own, where they fit it.
    """
    network = unwrapped(model)
    if not isinstance(network, ResNet):
        raise WeightsError(f"weights go into a residuum.ResNet, not into a {type(network).__name__}")
    checkpoint = read_checkpoint(source, prefix=prefix, config=network.config)
    mine = network.state_dict()
    _check_target(mine)
    found = fit(checkpoint.tensors, checkpoint.layout, mine, checkpoint.source)
    if strict and (found.missing or found.unexpected or found.reshaped):
        raise WeightsError(_misfit(checkpoint, mine, found))
    if not found.state:
        raise WeightsError(f"nothing in {checkpoint.source} fits the network")
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        _materialise(network)
    if found.new_head and isinstance(network.fc, nn.Linear):
        network.fc.reset_parameters()
    network.load_state_dict(found.state, strict=False)
    take_over(network, checkpoint, head="fc.weight" in found.state, new_head=found.new_head)
    return LoadReport(
        checkpoint.source, checkpoint.layout, tuple(found.state), found.renamed, found.missing, found.unexpected,
        found.reshaped, (*checkpoint.notes, *found.notes),
    )  # fmt: skip


def _check_target(mine: Mapping[str, Tensor]) -> None:
    """Refuse a network that plain tensors cannot be copied into, before anything is."""
    for name, tensor in mine.items():
        if hasattr(tensor, "full_tensor"):
            raise WeightsError(
                f"{quoted(name)} of the network is spread over processes; load the weights before it is sharded"
            )
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise WeightsError(
                f"{quoted(name)} of the network is no dense tensor; load the weights before it is changed"
            )
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise WeightsError(
                "the network was made in inference mode, where tensors stay as they are; make it outside"
            )


def _materialise(network: ResNet) -> None:
    """Bring what a network has on the meta device to the CPU, as a new network of its config has it."""
    fresh = ResNet(network.config)
    places = dict(fresh.named_modules())
    values: list[tuple[nn.Module, str, Tensor]] = []
    for path, module in network.named_modules():
        for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            if not tensor.is_meta:
                continue
            value = getattr(places.get(path), name, None)
            if not isinstance(value, Tensor) or value.shape != tensor.shape:
                raise WeightsError(
                    f"{quoted(f'{path}.{name}')} is on the meta device and no part of the network's config; call "
                    "to_empty and fill it in first"
                )
            values.append((module, name, value.detach().to(tensor.dtype).requires_grad_(tensor.requires_grad)))
    for module, name, value in values:
        learned = isinstance(getattr(module, name), nn.Parameter)
        setattr(module, name, nn.Parameter(value, value.requires_grad) if learned else value)


def _misfit(checkpoint: Checkpoint, mine: Mapping[str, Tensor], found: Fit) -> str:
    parts = [
        f"{what} {some(names)}"
        for what, names in (("missing", found.missing), ("unexpected", found.unexpected))
        if names
    ]
    if found.reshaped:
        parts.append(f"of another shape {some(found.reshaped)} (the network's: {tuple(mine[found.reshaped[0]].shape)})")
    try:
        names, differing = fitting_presets(infer_config(checkpoint.tensors))
        hint = f"the weights are nearest to preset {names[0]!r}" + (
            f" but for {', '.join(differing)}" * bool(differing)
        )
    except WeightsError:
        hint = "no preset is near"
    return f"{checkpoint.source} does not fit the network: {'; '.join(parts)}; {hint}. strict=False loads what fits"
