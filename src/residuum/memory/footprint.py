"""What each part of a network takes in a training step, from runs on torch's meta device: real operations, no numbers.

Nothing here knows a layer's formula: bytes are those of the tensors that are alive while the network's own forward and
backward passes run, and the work is what torch's operations report.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, first_line, quoted
from residuum.memory.checkpointing import ON_META, Statistics, block_forward, check_ours, norms_in_pass, stem_forward
from residuum.memory.live import Live
from residuum.nn.layers import BlurPool
from residuum.nn.resnet import Part, ResNet
from residuum.nn.stochastic_depth import StochasticDepth
from residuum.validation import LARGEST

Affine = tuple[float, float]  # what grows with the batch: fixed + each * batch_size


@dataclass(frozen=True)
class Footprint:
    """What one part of a network takes in a training step under one recomputation mode, for any batch.

    Bytes: `kept` from its forward pass to its backward pass, its output included; `forward` and `backward` at most
    while these run, its own kept bytes and its gradients included, as the highest of lines. Work of both passes:
    `flops` of convolutions and matrix products, and `moved`, the bytes that operations read and write.
    """

    kept: Affine
    forward: tuple[Affine, ...]
    backward: tuple[Affine, ...]
    flops: Affine
    moved: Affine


@dataclass(frozen=True)
class StepPart:
    """A stem, block or head in a training step: its output's shape without the batch and type, the bytes of its
    parameters that get gradients, its footprint in each mode.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    gradients: int
    modes: dict[str, Footprint]
    alone: Footprint  # the forward pass as `stage` does it first: it keeps its output and its norms' statistics

    def output(self, batch_size: int) -> int:
        """Bytes of the output."""
        return batch_size * math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StepCost:
    """What a training step takes: its parts, and what is there all the time."""

    # stem, blocks and head, in order
    parts: tuple[StepPart, ...]
    # bytes of parameters and buffers
    fixed: int
    # bytes of the parameters that get gradients
    trained: int
    # bytes of what a training loop has in its hands, by the batch size: images and labels, logits and loss
    held: Affine


def at(line: Affine, batch_size: int) -> float:
    """The value for a batch."""
    return line[0] + line[1] * batch_size


def _batch_norm(x: Tensor, weight: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """Output, mean and inverse deviation, which is what a CPU makes of batch norm in training."""
    if not rest[3]:
        return torch.ops.aten.native_batch_norm(x, weight, *rest)  # type: ignore[no-any-return]
    mean = torch.empty(x.shape[1], dtype=x.dtype if weight is None else weight.dtype, device="meta")
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _norm_backward(grad: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias, those that are wanted."""
    like = (x, weight, weight)
    return tuple(
        torch.empty_like(t) if wanted and t is not None else None for t, wanted in zip(like, rest[-1], strict=True)
    )


def _group_norm(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Output, mean and inverse deviation: on a CPU these are in the weight's precision."""
    samples, groups = rest[1], rest[4]
    mean = torch.empty((samples, groups), dtype=weight.dtype, device="meta")
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _group_norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    return _norm_backward(grad, x, *rest)


# On the meta device torch takes batch norm apart into dozens of operations in Python, most of the time of a run, and
# gives group norm's results another precision.
_SHORT = {
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_backward,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _norm_backward,
}


class _Work(Live):  # type: ignore[no-untyped-call]
    """Live bytes, and the work of the operations that make them."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(_SHORT.get(func, func), types, args, kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return out


class _Above(torch.autograd.Function):
    """A part's input: a tensor from nowhere, whose gradient goes nowhere."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].new_empty(()), None


class _Below(torch.autograd.Function):
    """What comes after a part: takes its output, gives back a gradient of its shape, which nobody else holds."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.like = y.shape, y.dtype
        return y.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        shape, dtype = ctx.like
        return torch.empty(shape, dtype=dtype, device="meta")


class _Mish(torch.autograd.Function):
    """Mish on the meta device, where torch takes its backward pass apart into a dozen operations with results each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.empty_like(grads[0])


class _Autocast(TorchFunctionMode):
    """Autocast for the meta device: convolutions and matrix products run in a lower precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, torch.conv1d, F.linear):
            args = tree_map(lambda t: t.to(self.dtype) if isinstance(t, Tensor) else t, args)
        elif func is F.pad and kwargs and kwargs["mode"] == "reflect":  # not in low precision on a CPU
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _lowered(function: Callable[..., Tensor], dtype: torch.dtype, *args: Any) -> Tensor:
    with _Autocast(dtype):
        return function(*args)


def on_meta(model: ResNet, dtype: torch.dtype | None) -> ResNet:
    """A copy on the meta device, as it trains; whether blocks are skipped is not left to chance.

    Where a `dtype` is given its layers compute in that, by themselves: a second pass in the middle of the backward pass
    would not see a mode that is on around it.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        if isinstance(module, StochasticDepth):
            module.rate, module.mode = 0.5, "row"
        if type(module) is nn.Mish:
            module.forward = _Mish.apply  # type: ignore[method-assign]
        if isinstance(module, nn.BatchNorm2d) and module.momentum is None:
            module.momentum = 0.1  # a count on the meta device has no value
        if dtype is not None and isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear | BlurPool):
            plain: Callable[..., Tensor] = partial(type(module).forward, module)  # type: ignore[arg-type]
            module.forward = partial(_lowered, plain, dtype)  # type: ignore[method-assign]
        if dtype is not None and isinstance(module, nn.Conv2d):  # modes call it without `forward`
            inner = partial(nn.Conv2d._conv_forward, module)
            module._conv_forward = partial(_lowered, inner, dtype)  # type: ignore[method-assign]
    return twin


_BATCHES = (2, 4)  # a line is known by two of its points


_MOST_BYTES = 2**46  # of one tensor; sums over a network stay below 2^63


def check_images(config: ResNetConfig, image_size: tuple[int, int], batch_size: int = 1) -> None:
    """Raise `ConfigError` for images or batches that cannot be, or whose tensors are larger than 64 TiB."""
    height, width = image_size
    if not (1 <= height <= LARGEST and 1 <= width <= LARGEST and 1 <= batch_size <= LARGEST):
        raise ConfigError(
            f"image_size is {quoted(tuple(image_size))} and batch_size is {quoted(batch_size)}; each number must be "
            f"from 1 to {LARGEST}"
        )
    channels = [config.in_channels, *config.stem_channels, *(n for s in config.stages for n in s.widest)]
    if 8 * batch_size * height * width * max(channels) > _MOST_BYTES:
        raise ConfigError(
            f"{batch_size} image(s) of {height}x{width} make tensors of more than 64 TiB in this network; use a "
            "smaller batch size or image size"
        )


def step_cost(model: ResNet, image_size: tuple[int, int] = (224, 224), dtype: torch.dtype | None = None) -> StepCost:
    """What a training step takes, part by part and mode by mode, for images of `image_size` and any batch size.

    The network is run on the meta device for two batches, in autocast to `dtype` where one is given; blocks that are
    alike are run once. Raises `ConfigError` where the images are too small, or their tensors larger than 64 TiB.
    """
    check_ours(model)
    check_images(model.config, image_size)
    twin = on_meta(model, dtype)
    token = ON_META.set(dtype)
    try:
        return _step_cost(twin, image_size)
    finally:
        ON_META.reset(token)


def _step_cost(twin: ResNet, image_size: tuple[int, int]) -> StepCost:
    known: dict[Any, StepPart] = {}
    parts = []
    shape: tuple[int, ...] = (twin.config.in_channels, *image_size)
    kind, above = torch.float32, False
    for name, module, forwards in pieces(twin):
        flags = tuple(p.requires_grad for p in module.parameters()), tuple(m.training for m in module.modules())
        key = repr(module), flags, shape, kind, above
        if key not in known:
            known[key] = _part(name, module, forwards, shape, kind, above)
        part = known[key]
        parts.append(replace(part, name=name))
        above = above or part.gradients > 0
        if name != "head":
            shape, kind = part.shape, part.dtype
    with torch.no_grad():
        logits = twin.head(torch.empty((2, *shape), dtype=kind, device="meta"))
    images = 4 * twin.config.in_channels * image_size[0] * image_size[1]
    held = 4, images + 8 + logits.nbytes / 2  # labels take 8 bytes each, the loss 4
    trained = sum(p.nbytes for p in twin.parameters() if p.requires_grad)
    return StepCost(tuple(parts), sum(t.nbytes for t in (*twin.parameters(), *twin.buffers())), trained, held)


class Piece(NamedTuple):
    """A part's name, what holds its parameters, its forward pass in each mode; the head's ends in a loss."""

    name: str
    module: nn.Module
    forwards: dict[str, Callable[[Tensor], Tensor]]


def pieces(model: ResNet) -> Iterator[Piece]:
    """A network's parts, in order."""
    stem, *stages, head = model.parts()
    yield Piece("stem", _held(stem), {mode: stem_forward(model, mode) for mode in ("none", "block")})
    for stage in stages:
        for number, block in enumerate(stage.blocks):
            forwards = {mode: block_forward(block, mode) for mode in ("none", "selective", "block")}
            yield Piece(f"{stage.name}.{number}", block, forwards)
    yield Piece("head", _held(head), {"none": partial(_loss, model)})


def _held(part: Part) -> nn.ModuleList:
    return nn.ModuleList(part.layers.values())


def _loss(model: ResNet, x: Tensor) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return F.cross_entropy(model.head(x).float(), labels, label_smoothing=0.1)


def _part(
    name: str,
    module: nn.Module,
    forwards: dict[str, Callable[[Tensor], Tensor]],
    shape: tuple[int, ...],
    kind: torch.dtype,
    above: bool,
) -> StepPart:
    trained = any(p.requires_grad for p in module.parameters())

    def runs(forward: Callable[[Tensor], Tensor], grads: bool) -> tuple[Tensor, Footprint]:
        first, second = (_run(name, module, forward, (batch, *shape), kind, above, grads) for batch in _BATCHES)
        return first.output, Footprint(
            _line(first.kept, second.kept),
            _lines(first.forward, second.forward),
            _lines(first.backward, second.backward),
            _line(first.flops, second.flops),
            _line(first.moved, second.moved),
        )

    modes = {mode: runs(forward, True)[1] for mode, forward in forwards.items() if above or trained or mode == "none"}
    statistics: Statistics = {}

    def first(x: Tensor) -> Tensor:
        statistics.clear()
        with norms_in_pass(module.modules(), None, statistics):
            return forwards["none"](x)

    y, alone = runs(first, False)
    gradients = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return StepPart(name, tuple(y.shape[1:]), y.dtype, gradients, modes, alone)


def _line(first: float, second: float) -> Affine:
    each = (second - first) / (_BATCHES[1] - _BATCHES[0])
    return first - each * _BATCHES[0], each


def _lines(first: list[int], second: list[int]) -> tuple[Affine, ...]:
    """Those of the lines that are highest for some batch."""
    lines = sorted({_line(a, b) for a, b in zip(first, second, strict=True)}, key=lambda line: (-line[1], -line[0]))
    top: list[Affine] = []
    for line in lines:
        if not top or line[0] > top[-1][0]:
            top.append(line)
    return tuple(top)


class _Measured(NamedTuple):
    """A stand-in for a part's output, and the numbers of a footprint for one batch; live bytes after each operation."""

    output: Tensor
    kept: int
    forward: list[int]
    backward: list[int]
    flops: int
    moved: int


def _run(
    name: str,
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    kind: torch.dtype,
    above: bool,
    grads: bool,
) -> _Measured:
    x = torch.empty(shape, dtype=kind, device="meta")
    source = torch.empty((), device="meta", requires_grad=above)
    for p in module.parameters():
        p.grad = None
    work = _Work()
    work.leave_out([x, source, *module.parameters(), *module.buffers()])
    try:
        with torch.set_grad_enabled(grads), work:
            y = forward(_Above.apply(source, x))
            kept, ahead = work.now, work.trace
            output = y.shape, y.dtype
            if y.requires_grad:
                work.trace = [kept]
                end = y if y.ndim == 0 else _Below.apply(y)
                del y
                torch.autograd.backward([end])
            else:
                work.trace = [0]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"images of this size do not pass through the {name} in training ({first_line(error)}); use larger ones"
        ) from None
    stand_in = torch.empty(output[0], dtype=output[1], device="meta")
    return _Measured(stand_in, kept, ahead, work.trace, work.flops, work.moved)
