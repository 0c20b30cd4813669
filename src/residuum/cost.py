"""What a network costs, found by running it on torch's meta device: real shapes and operations, no numbers computed.

A multiply-add (MAC) is two floating-point operations. Norms, activations and pools are not counted, as in the papers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, first_line
from residuum.memory.footprint import check_images, step_cost
from residuum.nn.resnet import ResNet

__all__ = ["LayerCost", "PartCost", "cost", "step_cost"]


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer, in the units of `PartCost`: what it keeps is what no layer before it has kept."""

    # name of the module in the network
    name: str
    # name of its class
    kind: str
    # shape of its output, with the batch
    shape: tuple[int, ...]
    # number of parameters
    parameters: int
    # MAC of the forward pass
    macs: int
    # MAC of the backward pass
    backward_macs: int
    # bytes that it keeps for the backward pass
    activation_bytes: int


@dataclass(frozen=True)
class PartCost:
    """The cost of a stem, stage or head: its output's shape, parameters, MAC of both passes for the whole batch.

    `activation_bytes` is what it keeps for the backward pass, parameters aside; a tensor that two parts keep counts in
    the first of them.
    """

    # stem, the name of a stage, or head
    name: str
    # shape of its output, with the batch
    shape: tuple[int, ...]
    # number of blocks
    blocks: int
    # number of parameters
    parameters: int
    # MAC of the forward pass
    macs: int
    # MAC of the backward pass
    backward_macs: int
    # bytes that it keeps for the backward pass
    activation_bytes: int
    # the layers, in order; none unless `by_layer`
    layers: tuple[LayerCost, ...]


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of what runs under it, by torch's own formulas, and the storages autograd keeps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.kept = {p.untyped_storage()._cdata: p.untyped_storage() for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.kept[storage._cdata] = storage  # held, so that no later storage takes its address
        return tensor

    def reading(self) -> tuple[int, int]:
        """MAC and bytes so far."""
        return self.flops // 2, sum(storage.nbytes() for storage in self.kept.values())


def cost(
    config: ResNetConfig,
    image_size: tuple[int, int] = (224, 224),
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    *,
    by_layer: bool = True,
) -> list[PartCost]:
    """The cost of each part of a network in training on (batch_size, in_channels, *image_size) images of `dtype`.

    The blocks of a stage are alike from the second on, so two of them are run and the second stands for the rest.
    `by_layer=False` takes half the time and leaves out the layers and the backward pass, whose MAC are theirs. Raises
    `ConfigError` where the images are too small for the network, or their tensors larger than 64 TiB.
    """
    check_images(config, image_size, batch_size)
    # A block that is skipped for the whole batch would be seen as free.
    short = config.replace(depths=tuple(min(depth, 2) for depth in config.depths), stochastic_depth_mode="row")
    with torch.device("meta"):
        model = ResNet(short).to(dtype)
        x = torch.empty(batch_size, config.in_channels, *image_size, dtype=dtype)
    meter = _Meter(model)
    layers: list[LayerCost] = []
    remove = [
        handle
        for name, module in model.named_modules()
        if by_layer and not any(module.children())
        for handle in _watch(name, module, meter, layers)
    ]

    def run(name: str, part: Callable[[Tensor], Tensor], modules: list[nn.Module]) -> PartCost:
        nonlocal x
        macs, kept = meter.reading()
        layers.clear()
        try:
            with meter, saved_tensors_hooks(meter.keep, lambda tensor: tensor):
                x = part(x)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{batch_size} image(s) of {image_size[0]}x{image_size[1]} do not pass through the {name} in training "
                f"({first_line(error)}); use larger images or a larger batch size"
            ) from None
        macs_after, kept_after = meter.reading()
        parameters = sum(p.numel() for module in modules for p in module.parameters())
        backward = sum(layer.backward_macs for layer in layers)
        return PartCost(
            name, tuple(x.shape), 0, parameters, macs_after - macs, backward, kept_after - kept, tuple(layers)
        )

    stem, *stages, head = model.parts()
    parts = [run(stem.name, stem.run, list(stem.layers.values()))]
    for stage, depth in zip(stages, config.depths, strict=True):
        blocks = [run(stage.name, block, [block]) for block in stage.blocks]
        blocks += [_renamed(blocks[-1], f"{stage.name}.1.", f"{stage.name}.{i}.") for i in range(2, depth)]
        total = {
            name: sum(getattr(block, name) for block in blocks)
            for name in ("parameters", "macs", "backward_macs", "activation_bytes")
        }
        inside = tuple(layer for block in blocks for layer in block.layers)
        parts.append(PartCost(stage.name, tuple(x.shape), depth, **total, layers=inside))
    parts.append(run(head.name, head.run, list(head.layers.values())))
    for handle in remove:
        handle.remove()
    return parts


def totals(config: ResNetConfig, size: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """Parameters and MAC of one image's inference, the sums of `cost`, in a fraction of its time.

    `size` is height and width in pixels. What is not counted, norms and activations, is left out: on the meta device it
    takes longest.
    """
    short = config.replace(depths=tuple(min(depth, 2) for depth in config.depths))
    with torch.device("meta"), torch.no_grad():
        model = ResNet(short).eval()
        x = torch.empty(1, config.in_channels, *size)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.ReLU):
                module.forward = _same  # type: ignore
        meter = _Meter(model)
        with meter:
            stem, *stages, head = model.parts()
            x = stem.run(x)
            repeated_parameters = repeated_flops = 0
            for stage, depth in zip(stages, config.depths, strict=True):
                for block in stage.blocks:
                    before = meter.flops
                    x = block(x)
                more = depth - len(stage.blocks)  # as the last one
                repeated_flops += more * (meter.flops - before)
                repeated_parameters += more * sum(p.numel() for p in stage.blocks[-1].parameters())
            head.run(x)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters + repeated_parameters, (meter.flops + repeated_flops) // 2


def _renamed(block: PartCost, old: str, new: str) -> PartCost:
    return replace(block, layers=tuple(replace(layer, name=layer.name.replace(old, new)) for layer in block.layers))


def _watch(name: str, layer: nn.Module, meter: _Meter, found: list[LayerCost]) -> list[RemovableHandle]:
    """Note what a layer costs whenever it runs."""
    before = (0, 0)

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal before
        before = meter.reading()

    def leave(module: nn.Module, args: Any, out: Tensor) -> None:
        macs, kept = meter.reading()
        parameters = sum(p.numel() for p in module.parameters())
        spent = macs - before[0]
        backward = _backward_macs(module, args[0]) if spent else 0
        kind, shape = type(module).__name__, tuple(out.shape)
        found.append(LayerCost(name, kind, shape, parameters, spent, backward, kept - before[1]))

    return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _backward_macs(layer: nn.Module, x: Tensor) -> int:
    """Of one layer by itself; the first of a network has no gradient to give to the images."""
    meter = _Meter(layer)
    with _disable_current_modes(), saved_tensors_hooks(_same, _same):
        out = type(layer).forward(layer, x.detach().requires_grad_(x.requires_grad))
        with meter:
            torch.autograd.backward([out], [torch.empty_like(out)])
    for parameter in layer.parameters():
        parameter.grad = None
    return meter.reading()[0]
