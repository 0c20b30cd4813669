"""What the backward pass recomputes instead of keeping: modes, applied from outside, that change no number.

`none` keeps what autograd does. `selective` keeps the outputs of the convolutions that are dear and narrow, and
recomputes norms, activations and the widening convolution. `block` keeps only the input of each block, `stage` only
that of each stage, recomputing its blocks in turn. In all but `none` the stem is recomputed from its first convolution
on. A 1x1 convolution over more than 128 channels is not run again: it costs much and its output is small.

Recomputation is `torch.utils.checkpoint`, which stops as soon as it has what it needs: a segment that ends in a
convolution does not run it again. Batch norm's statistics are left alone by the second pass (pytorch/pytorch#96136),
and whether a block is skipped is settled before the first, so that losses, gradients, parameters and buffers are those
of the plain network, to the bit on a CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from residuum.errors import ConfigError
from residuum.nn.blocks import Block, add
from residuum.nn.resnet import ResNet, Stage

_Result = TypeVar("_Result")
Mode = Literal["none", "selective", "block", "stage"]
MODES: tuple[str, ...] = get_args(Mode)
# A 1x1 convolution over n channels takes n multiply-adds for each value that recomputing it saves.
_WIDEST = 128
# Their backward pass needs their output alone, which the next block keeps anyway.
_BY_OUTPUT = (nn.ReLU, nn.LeakyReLU, nn.ELU)


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
    direct = x.device.type in ("cpu", "meta") and norm.weight is not None and norm.weight.dtype == torch.float32
    if known is not None and norm in known:
        return _Normalise.apply(x, norm.weight, norm.bias, norm, 0.0, known[norm], found)  # type: ignore[no-any-return]
    if known is not None:
        before = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            return type(norm).forward(norm, x)
        finally:
            norm.momentum, norm.num_batches_tracked = before
    if not direct:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    count = norm.num_batches_tracked
    if count is not None:
        count.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(count or 0.0)
    return _Normalise.apply(x, norm.weight, norm.bias, norm, momentum, None, found)  # type: ignore[no-any-return]


@contextmanager
def norms_in_pass(module: nn.Module, known: Statistics | None, found: Statistics) -> Iterator[None]:
    """Within the block the batch norms of `module` run as those of one pass do.

    Within a pass of an enclosing segment, what that knows is known here, and what is found here it finds as well.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [norm.__dict__.get("forward") for norm in norms]
    for norm, enclosing in zip(norms, before, strict=True):
        norm.forward = partial(_norm, norm, enclosing.args[1] if enclosing else known, found)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, enclosing in zip(norms, before, strict=True):
            del norm.forward
            if enclosing:
                norm.forward = enclosing  # type: ignore[method-assign]
                if norm in found:
                    enclosing.args[2][norm] = found[norm]


def _again(module: nn.Module, run: Callable[..., _Result], *args: Tensor) -> _Result:
    """`run(*args)`, of which only the arguments are kept; `module` holds its norms and what draws random numbers."""
    draws = any(isinstance(m, Block) and m.drop is not None for m in module.modules())
    statistics: Statistics = {}
    result: _Result = checkpoint(
        run,
        *args,
        use_reentrant=False,
        preserve_rng_state=draws,
        context_fn=lambda: (norms_in_pass(module, None, statistics), norms_in_pass(module, statistics, {})),
    )
    return result


def _plainly() -> bool:
    """Nothing is kept without gradients, and a compiler's partitioner decides for itself what is."""
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


def _autocast(kind: str) -> torch.dtype | None:
    """The precision that convolutions run in, or None for that of their input."""
    if kind == "meta":
        return ON_META.get()
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _conv(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)`, which keeps no copy of the weight in autocast's precision: backward makes it again."""
    dtype = _autocast(x.device.type)
    if type(conv) is not nn.Conv2d or dtype is None:
        return conv(x)  # type: ignore[no-any-return]
    weight = conv.weight.to(dtype)
    place = weight.untyped_storage()._cdata

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.untyped_storage()._cdata == place else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        return conv.weight.detach().to(dtype) if kept is None else kept

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
    return not block.preact and block.se is None and isinstance(getattr(block, f"bn{block.length}"), _BatchNorm)


def _selective(block: Block, x: Tensor) -> Tensor:
    if _plainly():
        return Block.forward(block, x)
    if block.skips(x):
        return block.finish(block.body(x, skip=True))
    if block.preact:
        h, x = _again(block, partial(_open, block), x)
    else:
        h, x = _open(block, x)
    last = block.length
    for i in range(2, last):
        h = _again(block, partial(block.between, i=i), h)
    if not _by_output(block):
        return _again(block, lambda h, x: block.finish(add(block.leave(block.between(h, last)), x)), h, x)
    widening = getattr(block, f"conv{last}")
    dear = widening.kernel_size != (1, 1) or widening.in_channels > _WIDEST
    if dear and _ends_in_norm(block):  # its output is kept
        h = block.leave(_again(block, partial(block.between, i=last), h))
    elif _ends_in_norm(block):
        h = _norm_of(_again(block, lambda h: _Held.apply(block.between(h, last)), h), block.leave)
    else:
        h = _again(block, lambda h: block.leave(block.between(h, last)), h)
    return block.finish(add(h, x))


def _each(shortcut: nn.Module, x: Tensor) -> Tensor:
    """`shortcut(x)`, its convolution by `_conv`."""
    for layer in shortcut if isinstance(shortcut, nn.Sequential) else [shortcut]:
        x = _conv(layer, x)
    return x


def _open(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution's output and the shortcut's."""
    h = block.enter(x)
    return _conv(block.conv1, h), x if block.downsample is None else _each(block.downsample, h)


def _by_output(block: Block) -> bool:
    """Whether the block's last activation, if it has one, needs its output alone."""
    return block.preact or isinstance(getattr(block, f"act{block.length}"), _BY_OUTPUT)


def _block(block: Block, x: Tensor, skip: bool | None = None) -> Tensor:
    if _plainly():
        return Block.forward(block, x)
    skip = block.skips(x) if skip is None else skip
    if not _by_output(block):
        return _again(block, lambda x: block.finish(block.body(x, skip)), x)
    if skip or not _ends_in_norm(block):
        return block.finish(_again(block, partial(block.body, skip=skip), x))
    shortcut = block.downsample
    layers = list(shortcut) if isinstance(shortcut, nn.Sequential) else []
    dear = any(isinstance(layer, nn.Conv2d) and layer.in_channels > _WIDEST for layer in layers)
    projects = bool(layers) and isinstance(layers[-1], _BatchNorm) and not dear

    def project(x: Tensor) -> Tensor:
        for layer in layers[:-1]:
            x = layer(x)
        return x

    def convolutions(x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = block.conv1(block.enter(x))
        for i in range(2, block.length + 1):
            h = block.between(h, i)
        return _Held.apply(h), _Held.apply(project(x)) if projects else None

    h, side = _again(block, convolutions, x)
    h = _norm_of(h, block.leave)
    if side is not None:
        x = _norm_of(side, layers[-1])
    elif shortcut is not None:
        x = _each(shortcut, x)
    return block.finish(add(h, x))


def _stage(stage: Stage, x: Tensor) -> Tensor:
    if _plainly():
        return Stage.forward(stage, x)
    blocks = [block for block in stage if isinstance(block, Block)]
    skips = [block.skips(x) for block in blocks]

    def run(x: Tensor) -> Tensor:
        for block, skip in zip(blocks, skips, strict=True):
            x = _block(block, x, skip)
        return x

    return _again(stage, run, x)


def _stem(model: ResNet, x: Tensor) -> Tensor:
    if _plainly():
        return ResNet.stem(model, x)
    return _again(model.bn1, model.after_conv1, _conv(model.conv1, x))


def block_forward(block: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    """The forward pass of a block in a mode other than `stage`."""
    runs: dict[str, Callable[..., Tensor]] = {"none": Block.forward, "selective": _selective, "block": _block}
    return partial(runs[mode], block)


def stem_forward(model: ResNet, mode: str) -> Callable[[Tensor], Tensor]:
    """The forward pass of a stem, which is recomputed in every mode but `none`."""
    return partial(ResNet.stem if mode == "none" else _stem, model)


def recompute(model: ResNet, mode: str | Sequence[str | Sequence[str]], *, stem: bool | None = None) -> ResNet:
    """Set what a network's backward pass recomputes, in place: one mode for all, one per stage, or one per block.

    `recompute(model, ["stage", "block", ["selective", "none", ...], "none"])`. Names of parameters do not change, and
    `"none"` undoes everything. `stem` says whether the stem is recomputed; by itself, if anything is. Raises
    `ConfigError` for a mode that does not exist and a model that is not ours.

    Under `torch.compile` the compiler's own partitioner takes over and the modes stand back; `Plan.compile` gives it
    the same budget.
    """
    check_ours(model)
    modes = _per_stage(mode, model)
    for module in (model, *(m for m in model.modules() if isinstance(m, Block | Stage))):
        module.__dict__.pop("forward", None)
        module.__dict__.pop("stem", None)
    for stage, chosen in zip(model.stages, modes, strict=True):
        if chosen == "stage":
            stage.forward = partial(_stage, stage)  # type: ignore[method-assign]
            continue
        for block, wanted in zip(stage, chosen, strict=True):
            if wanted != "none":
                block.forward = block_forward(block, wanted)
    anything = any(chosen == "stage" or set(chosen) != {"none"} for chosen in modes)
    if anything if stem is None else stem:
        model.stem = partial(_stem, model)  # type: ignore[method-assign]
    return model


def check_ours(model: object) -> None:
    """Raise `ConfigError` for a model that is no `residuum.ResNet`."""
    if not isinstance(model, ResNet):
        name = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ConfigError(f"the model is a {name}; give a residuum.ResNet, unwrapped")


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
