"""What the backward pass recomputes instead of keeping: modes, applied from outside, that change no number.

`none` keeps what autograd does. `selective` keeps the outputs of the convolutions that are costly and narrow, and
recomputes norms, activations and the widening convolution. `block` keeps only the input of each block, `stage` only
that of each stage, recomputing its blocks in turn. In all but `none` the stem is recomputed from its first convolution
on. A 1x1 convolution over more than 128 channels is not run again: it costs much and its output is small.

Recomputation is `torch.utils.checkpoint`, which stops as soon as it has what it needs: a segment that ends in a
convolution does not run it again. Batch norm's statistics are left alone by the second pass (pytorch/pytorch#96136),
random numbers are drawn again as they were, and so are the buffers that layers of a user's own may hold, so that
losses, gradients, parameters and buffers are those of the plain network, to the bit on a CPU. Layers are always called
as modules, so that hooks, parametrisations and layers put in their place have their effect, in both passes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from residuum.errors import ConfigError
from residuum.nn.blocks import Block, PreactBlock
from residuum.nn.freezing import FrozenBatchNorm
from residuum.nn.layers import BlurPool, EfficientChannelAttention, SqueezeExcite, StandardizedConv2d, ZeroPadShortcut
from residuum.nn.resnet import ResNet, Stage
from residuum.nn.stochastic_depth import StochasticDepth
from residuum.nn.wrapping import why_not_ours

_Result = TypeVar("_Result")
# what the backward pass of a block keeps; `stage` is for whole stages
Mode = Literal["none", "selective", "block", "stage"]
# all modes, from the one that keeps most to the one that keeps least
MODES: tuple[str, ...] = get_args(Mode)
# A 1x1 convolution over n channels takes n multiply-adds for each value that recomputing it saves.
_WIDEST = 128
# Their backward pass needs their output alone, which the next block keeps anyway.
_BY_OUTPUT = (nn.ReLU, nn.LeakyReLU, nn.ELU)
# What draws no random numbers and holds no state but what is seen to below.
_PLAIN = frozenset({
    Block, PreactBlock, Stage, BlurPool, EfficientChannelAttention, SqueezeExcite, StandardizedConv2d, ZeroPadShortcut,
    FrozenBatchNorm, nn.BatchNorm2d, nn.GroupNorm, nn.Conv1d, nn.Conv2d, nn.Linear, nn.Identity, nn.Sequential,
    nn.ModuleList, nn.AvgPool2d, nn.MaxPool2d, nn.ZeroPad2d, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish,
})  # fmt: skip


# Autocast does not know the meta device; whoever plays its part there says so here.
ON_META: ContextVar[torch.dtype | None] = ContextVar("autocast on the meta device", default=None)
# Mean and 1 / standard deviation of the batch, for the norms of one pass that could say them.
Statistics = dict[_BatchNorm, tuple[Tensor, Tensor]]


class _Normalise(torch.autograd.Function):
    """Batch norm in training, by statistics that are known already where `known` gives them. torch's kernels, CPU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: _BatchNorm, momentum: float, known: Any, found: Any
    ) -> Tensor:
        if known is None:
            out, mean, invstd = torch.native_batch_norm(
                x, weight, bias, norm.running_mean, norm.running_var, True, momentum, norm.eps
            )
            found[norm] = mean, invstd
        else:
            mean, invstd = found[norm] = known
            # Evaluation's kernel does one pass, no two, and the same arithmetic when it is handed the factor ready.
            out = torch.batch_norm(x, weight * invstd, bias, mean, torch.ones_like(mean), False, 0.0, 0.0, False)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.eps = norm.eps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, invstd, True, ctx.eps, wanted
        )
        return dx, dweight, dbias, None, None, None, None


def _norm(norm: _BatchNorm, known: Statistics | None, found: Statistics, x: Tensor) -> Tensor:
    """Batch norm in one pass of a segment: the first, where `known` is None, or a later one.

    A later pass leaves running statistics and counter alone.
    """
    if known is not None and norm in known:
        return _Normalise.apply(x, norm.weight, norm.bias, norm, 0.0, known[norm], found)  # type: ignore[no-any-return]
    if known is not None:
        before, norm._buffers = norm._buffers, {n: b if b is None else b.clone() for n, b in norm._buffers.items()}
        try:
            return type(norm).forward(norm, x)
        finally:
            norm._buffers = before
    torchs = type(norm).forward is _BatchNorm.forward  # what averages over processes, say, has a way of its own
    weight = norm._parameters.get("weight")  # None where it is parametrised, too
    if not torchs or x.device.type not in ("cpu", "meta") or weight is None or weight.dtype != torch.float32:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    count = norm.num_batches_tracked
    if count is not None:
        count.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(count or 0.0)
    return _Normalise.apply(x, norm.weight, norm.bias, norm, momentum, None, found)  # type: ignore[no-any-return]


class _NormInPass(partial[Tensor]):
    """`_norm` in the place of a norm's `forward`; what a user has put there is left where it is."""


@contextmanager
def norms_in_pass(modules: Iterable[nn.Module], known: Statistics | None, found: Statistics) -> Iterator[None]:
    """Within the block the batch norms among `modules` run as those of one pass do.

    Within a pass of an enclosing segment, what that knows is known here, and what is found here it finds as well.
    """
    norms = []
    for m in modules:
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats:
            enclosing = m.__dict__.get("forward")
            if enclosing is None or isinstance(enclosing, _NormInPass):
                norms.append((m, enclosing))
    for norm, enclosing in norms:
        norm.forward = _NormInPass(_norm, norm, enclosing.args[1] if enclosing else known, found)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, enclosing in norms:
            del norm.forward
            if enclosing:
                norm.forward = enclosing  # type: ignore[method-assign]
                if norm in found:
                    enclosing.args[2][norm] = found[norm]


@contextmanager
def _as_it_was(state: dict[nn.Module, Any]) -> Iterator[None]:
    """Within the block modules have the buffers, and branches that are dropped the draws, that are given."""
    after = _state(state)
    _restore(state)
    try:
        yield
    finally:
        _restore(after)


def _state(modules: Iterable[nn.Module]) -> dict[nn.Module, Any]:
    return {m: m.draws if isinstance(m, StochasticDepth) else m._buffers for m in modules}


def _restore(state: dict[nn.Module, Any]) -> None:
    for module, value in state.items():
        if isinstance(module, StochasticDepth):
            module.draws = value
        else:
            module._buffers = value


def _again(parts: Iterable[nn.Module | None], run: Callable[..., _Result], *args: Tensor) -> _Result:
    """`run(*args)`, of which only the arguments are kept; `parts` hold all the modules that it runs."""
    modules = [module for part in parts if part is not None for module in part.modules()]
    # Those that may draw random numbers, or change a buffer in each pass, as a spectral norm does.
    others = [m for m in modules if type(m) not in _PLAIN or m._forward_hooks or m._forward_pre_hooks]
    moving = [m for m in others if m._buffers or isinstance(m, StochasticDepth)]
    moving = [m for m in moving if not isinstance(m, _BatchNorm) or "forward" in m.__dict__]
    statistics: Statistics = {}
    before = {
        m: state if isinstance(state, int) else {n: b if b is None else b.clone() for n, b in state.items()}
        for m, state in _state(moving).items()
    }

    @contextmanager
    def later() -> Iterator[None]:
        with _as_it_was(before), norms_in_pass(modules, statistics, {}):
            yield

    result: _Result = checkpoint(
        run,
        *args,
        use_reentrant=False,
        preserve_rng_state=bool(others),
        context_fn=lambda: (norms_in_pass(modules, None, statistics), later()),
    )
    return result


def _plainly(x: object) -> bool:
    """Nothing is kept without gradients, and what compiles or traces the network decides for itself what is."""
    return not torch.is_grad_enabled() or torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy)


def _autocast(kind: str) -> torch.dtype | None:
    """The precision that convolutions run in, or None for that of their input."""
    if kind == "meta":
        return ON_META.get()
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _conv(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)`, which keeps no copy of the weight in autocast's precision: backward makes it again."""
    dtype, replaced = _autocast(x.device.type), conv.__dict__.get("forward")
    ours = replaced is None or ON_META.get() is not None
    if type(conv) is not nn.Conv2d or dtype is None or not ours:
        return conv(x)  # type: ignore[no-any-return]
    conv.forward = partial(_light, conv, dtype)  # type: ignore[method-assign] # called as a module, for the hooks
    try:
        return conv(x)  # type: ignore[no-any-return]
    finally:
        del conv.forward
        if replaced is not None:
            conv.forward = replaced  # type: ignore[method-assign]


def _light(conv: nn.Conv2d, dtype: torch.dtype, x: Tensor) -> Tensor:
    own = conv.weight  # of a pruned layer not a parameter, but made by a hook before each pass
    weight = own.to(dtype)
    place = weight.untyped_storage()._cdata

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.untyped_storage()._cdata == place else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        return own.detach().to(dtype) if kept is None else kept

    with saved_tensors_hooks(pack, unpack):
        return conv._conv_forward(x, weight, conv.bias)  # type: ignore[no-any-return]


class _Held(torch.autograd.Function):
    """The identity. Within a segment it saves its value, which `_norm_of` then asks it for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _norm_of(held: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """`norm(held)`, which keeps the norm's statistics but not its input: backward has that from the segment before.

    So the second pass ends before the norm, and does not work out again what is known.
    """
    source, place, shape = held.grad_fn, held.untyped_storage()._cdata, held.shape

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.untyped_storage()._cdata == place and tensor.shape == shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        return source.saved_tensors[0] if kept is None else kept  # type: ignore[union-attr]

    with saved_tensors_hooks(pack, unpack):
        return norm(held)


def _ends_in_norm(block: Block) -> bool:
    """Whether the branch's last tensors are a convolution's output and its norm's, and the sum keeps nothing."""
    norm = getattr(block, f"bn{block.length}")
    return not block.preact and block.se is None and isinstance(norm, _BatchNorm | FrozenBatchNorm)


@dataclass(frozen=True)
class _Segment:
    """Layers of a branch in a row."""

    layers: tuple[nn.Module, ...]

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:  # no name but x holds a tensor, so that each is freed as soon as it can be
            x = layer(x)
        return x


def _segments(block: Block) -> list[_Segment]:
    """The branch cut after each convolution; a pre-activation block's first norm and activation come before it."""
    rows: list[list[nn.Module]] = [[]]
    for name in block.branch_layers()[2 if block.preact else 0 :]:
        rows[-1].append(getattr(block, name))
        if name.startswith("conv"):
            rows.append([])
    return [_Segment(tuple(row)) for row in rows]


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _entrance(block: Block) -> list[nn.Module]:
    return [block.bn1, block.act1] if block.preact else []


def _selective(block: Block, x: Tensor) -> Tensor:
    if _plainly(x):
        return type(block).forward(block, x)
    if block.skips(x):
        return block.close(block.skipped(x))
    first, *between, last, end = _segments(block)
    if block.preact:
        parts = [*_entrance(block), *first.layers, block.downsample]
        h, x = _again(parts, partial(_open, block, first), x)
    else:
        h, x = _open(block, first, x)
    for segment in between:
        h = _again(segment.layers, segment, h)
    layers = [*last.layers, *end.layers]
    if not _by_output(block):
        layers.append(getattr(block, f"act{block.length}"))
        return _again(layers, lambda h, x: block.close(block.add(end(last(h)), x)), h, x)
    widening = last.layers[-1]
    costly = not isinstance(widening, nn.Conv2d) or widening.kernel_size != (1, 1) or widening.in_channels > _WIDEST
    if not _ends_in_norm(block):
        h = _again(layers, lambda h: end(last(h)), h)
    elif costly:  # its output is kept
        h = end(_again(last.layers, last, h))
    else:
        h = _norm_of(_again(last.layers, lambda h: _Held.apply(last(h)), h), end)
    return block.close(block.add(h, x))


def _open(block: Block, first: _Segment, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution's output and the shortcut's."""
    h = block.enter(x)
    return _conv(first.layers[0], h), x if block.downsample is None else _each(block.downsample, h)


def _each(shortcut: nn.Module, x: Tensor) -> Tensor:
    """`shortcut(x)`, its convolution by `_conv`."""
    if type(shortcut) is not nn.Sequential or _hooked(shortcut):
        return _conv(shortcut, x)
    for layer in shortcut:
        x = _conv(layer, x)
    return x


def _by_output(block: Block) -> bool:
    """Whether the block's last activation, if it has one, needs its output alone."""
    return block.preact or isinstance(getattr(block, f"act{block.length}"), _BY_OUTPUT)


def _block(block: Block, x: Tensor) -> Tensor:
    if _plainly(x):
        return type(block).forward(block, x)
    skip, segments, shortcut = block.skips(x), _segments(block), block.downsample

    def whole(x: Tensor) -> Tensor:
        if skip:
            return block.skipped(x)
        h = first = block.enter(x)
        for segment in segments:
            h = segment(h)
        return block.add(h, x if shortcut is None else shortcut(first))

    if not _by_output(block):
        return _again([block], lambda x: block.close(whole(x)), x)
    if skip or not _ends_in_norm(block):
        return block.close(_again([block], whole, x))
    layers = list(shortcut) if type(shortcut) is nn.Sequential and not _hooked(shortcut) else []
    costly = any(isinstance(layer, nn.Conv2d) and layer.in_channels > _WIDEST for layer in layers)
    projects = bool(layers) and isinstance(layers[-1], _BatchNorm | FrozenBatchNorm) and not costly
    project, end = _Segment(tuple(layers[:-1])), segments.pop()

    def convolutions(x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = x
        for segment in segments:
            h = segment(h)
        return _Held.apply(h), _Held.apply(project(x)) if projects else None

    parts = [layer for segment in segments for layer in segment.layers]
    h, side = _again([*parts, *project.layers], convolutions, x)
    h = _norm_of(h, end)
    if side is not None:
        x = _norm_of(side, layers[-1])
    elif shortcut is not None:
        x = _each(shortcut, x)
    return block.close(block.add(h, x))


def _stage(stage: Stage, x: Tensor) -> Tensor:
    run = partial(type(stage).forward, stage)
    return run(x) if _plainly(x) else _again([stage], run, x)


def _stem(model: ResNet, x: Tensor) -> Tensor:
    if _plainly(x):
        return type(model).stem(model, x)
    conv1, *others = model.parts()[0].layers.values()
    return _again(others, model.after_conv1, _conv(conv1, x))


class _Recomputing(partial[Tensor]):
    """What `recompute` puts in the place of a `forward`."""


def block_forward(block: Block, mode: str) -> Callable[[Tensor], Tensor]:
    """The forward pass of a block in a mode other than `stage`."""
    runs: dict[str, Callable[..., Tensor]] = {"none": type(block).forward, "selective": _selective, "block": _block}
    return _Recomputing(runs[mode], block)


def stem_forward(model: ResNet, mode: str) -> Callable[[Tensor], Tensor]:
    """The forward pass of a stem, which is recomputed in every mode but `none`."""
    return _Recomputing(type(model).stem if mode == "none" else _stem, model)


def recompute(model: ResNet, mode: str | Sequence[str | Sequence[str]], *, stem: bool | None = None) -> ResNet:
    """Set what a network's backward pass recomputes, in place: one mode for all, one per stage, or one per block.

    `recompute(model, ["stage", "block", ["selective", "none", ...], "none"])`. Names of parameters do not change, and
    `"none"` undoes everything. `stem` says whether the stem is recomputed; by itself, if anything is. Raises
    `ConfigError` for a mode that does not exist, for a model that is not ours or is wrapped (`DataParallel`,
    `DistributedDataParallel`, `torch.compile`, FSDP), and for a block whose `forward` somebody has replaced.

    Under `torch.compile` the compiler's own partitioner takes over and the modes stand back; `Plan.compile` gives it
    the same budget.
    """
    check_ours(model)
    modes = _per_stage(mode, model)
    stages = [(part.layers[part.name], part.blocks) for part in model.parts()[1:-1]]
    holders = [module for stage, blocks in stages for module in (stage, *blocks)]
    for name, place in (("stem", model), *(("forward", module) for module in holders)):
        if not isinstance(place.__dict__.get(name), _Recomputing | None):
            raise ConfigError(
                f"a {type(place).__name__} of this network has a {name} that was put in its place by hand; "
                "recompute cannot replace it, so remove it first"
            )
    for name, place in (("stem", model), *(("forward", module) for module in holders)):
        place.__dict__.pop(name, None)
    for (stage, blocks), chosen in zip(stages, modes, strict=True):
        if chosen == "stage":
            stage.forward = _Recomputing(_stage, stage)
        for block, wanted in zip(blocks, ["block"] * len(blocks) if chosen == "stage" else chosen, strict=True):
            if wanted != "none":
                block.forward = block_forward(block, wanted)  # type: ignore[assignment, method-assign]
    anything = any(chosen == "stage" or set(chosen) != {"none"} for chosen in modes)
    if anything if stem is None else stem:
        model.stem = stem_forward(model, "block")  # type: ignore[assignment, method-assign]
    return model


def check_ours(model: object) -> None:
    """Raise `ConfigError` for a model that is no `residuum.ResNet`, or is one that a wrapper has taken over."""
    if (why := why_not_ours(model)) is not None:
        raise ConfigError(why)


def _per_stage(mode: str | Sequence[str | Sequence[str]], model: ResNet) -> list[str | list[str]]:
    """`stage`, or the mode of each block, for each stage."""
    stages = model.stages
    if not isinstance(mode, str | Sequence):
        raise ConfigError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}, or a list of one for each stage")
    per_stage = [mode] * len(stages) if isinstance(mode, str) else list(mode)
    if len(per_stage) != len(stages):
        raise ConfigError(f"{len(per_stage)} modes are given for {len(stages)} stages; give one, or one per stage")
    modes: list[str | list[str]] = []
    for number, (given, stage) in enumerate(zip(per_stage, stages, strict=True), 1):
        if given == "stage":
            modes.append("stage")
            continue
        chosen = [given] * len(stage) if isinstance(given, str) else list(given)
        if len(chosen) != len(stage):
            raise ConfigError(f"{len(chosen)} modes are given for the {len(stage)} blocks of stage {number}")
        for name in chosen:
            if name not in MODES[:3]:
                raise ConfigError(
                    f"mode is {name!r}; it must be one of {', '.join(MODES)}"
                    + (", and 'stage' for whole stages only" if name == "stage" else "")
                )
        modes.append(chosen)
    return modes
