"""A network's parameters in groups of one weight decay and one share of the learning rate."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from residuum.nn.resnet import ResNet
from residuum.train.optimizers import suits_muon

Decay = Literal["weights", "all"]


def param_groups(
    network: ResNet,
    *,
    weight_decay: float,
    decay: Decay = "weights",
    bias_lr: float = 1.0,
    head_lr: float = 1.0,
    layer_decay: float = 1.0,
    muon: bool = False,
    others_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with `params`, `weight_decay` and `lr_scale`, a factor of the learning rate.

    `decay` says what decays: `weights`, of convolutions and classifier, or `all`, norms and biases too (1512.03385).
    The factors multiply: `bias_lr` of every bias, `head_lr` of the classifier, `layer_decay` once for each layer above
    a parameter's own, where the head, each block and the stem are a layer. With `muon` the groups say whether they are
    `orthogonal`, and `others_lr` is the factor of those that are not. Each parameter is in one group; frozen ones too,
    for they may thaw, in groups of their own: torch's fused SGD wants momentum for all of a group or for none.
    """
    depths = _depths(network)
    head = {id(p) for p in network.fc.parameters()}
    groups: dict[tuple[bool, bool, float, bool], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        orthogonal = muon and suits_muon(p)
        scale = layer_decay ** depths[id(p)]
        if name.endswith(".bias"):
            scale *= bias_lr
        if id(p) in head:
            scale *= head_lr
        if muon and not orthogonal:
            scale *= others_lr
        decays = decay == "all" or p.ndim > 1
        groups.setdefault((decays, orthogonal, scale, p.requires_grad), []).append(p)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        | ({"orthogonal": orthogonal} if muon else {})
        for (decays, orthogonal, scale, _), parameters in groups.items()
    ]


def rates_of(network: ResNet, groups: Iterable[Mapping[str, Any]], lr: float, first: int = 0) -> str:
    """The highest learning rates of a network's parts, from the head down to part `first`: `head 0.1, layer4 0.01`."""
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    texts = []
    for part in reversed(network.parts()[first:]):
        own = [scales[id(p)] * lr for layer in part.layers.values() for p in layer.parameters()]
        ends = dict.fromkeys(f"{rate:.3g}" for rate in (min(own), max(own)))
        texts.append(f"{part.name} {' to '.join(ends)}")
    return ", ".join(texts)


def _depths(network: ResNet) -> dict[int, int]:
    """How many layers lie above each parameter's own, up to the head: each block is one, so are stem and head."""
    layers: list[list[nn.Module]] = []
    for part in network.parts():
        layers += [[block] for block in part.blocks] or [list(part.layers.values())]
    return {
        id(p): len(layers) - number
        for number, modules in enumerate(layers, 1)
        for module in modules
        for p in module.parameters()
    }
