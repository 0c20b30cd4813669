"""How long each part of a network takes in a training step under each mode: timed on the machine, part by part.

What a convolution reaches depends on its shape and on the processor, and recomputing has a cost of its own, so nothing
is worked out: the network's own parts are run, each kind once, on a few images.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from residuum.devices import now, timed_in
from residuum.memory.footprint import Affine, StepPart, on_meta, pieces
from residuum.nn.resnet import ResNet

Times = dict[str, Affine]  # seconds, in a batch: both passes in each mode; as `first`, the forward pass by itself

_LONG_ENOUGH = 5e-3  # seconds of one run, so that a scheduler's grain matters little; batches double until then
_LARGEST = 256
_WHOLE, _FEW = 1 << 30, 4  # pixels in height and width at most


def measure_times(
    model: ResNet,
    parts: Sequence[StepPart],
    image_size: tuple[int, int],
    dtype: torch.dtype | None,
    device: torch.device,
) -> list[Times]:
    """Of each part, for images of `image_size` in autocast to `dtype`, on the device: some seconds in all for a CPU.

    In fp32 where the device does not compute bf16. The model may be on the meta device; one part at a time is held in
    memory.
    """
    timed = timed_in(dtype, device)
    twin = on_meta(model, None)
    last = any(p.ndim == 4 and not p.is_contiguous() for p in twin.parameters())
    layout = torch.channels_last if last else torch.contiguous_format
    alike = Counter(id(part.modes) for part in parts)  # parts that are alike share them
    known: dict[int, Times] = {}
    shape: tuple[int, ...] = (twin.config.in_channels, *image_size)
    kind, above = torch.float32, False

    def image(batch_size: int, most: int) -> Tensor:
        """A part's input, at most so many pixels high and wide."""
        small = [min(pixels, most) for pixels in shape[1:]]
        whole = torch.full((batch_size, shape[0], *small), 0.5, dtype=kind, device=device)
        return whole.to(memory_format=layout).requires_grad_(above)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        for part, (_, module, forwards) in zip(parts, pieces(twin), strict=True):
            if id(part.modes) not in known:
                _materialise(module, device)
                wanted = {mode: forwards[mode] for mode in part.modes}
                known[id(part.modes)] = _times(module, wanted, timed, image, 2 + alike[id(part.modes)].bit_length())
                module.to("meta")
            above = above or part.gradients > 0
            shape, kind = part.shape, part.dtype if timed == dtype else torch.float32
    return [known[id(part.modes)] for part in parts]


def _times(
    module: nn.Module,
    forwards: dict[str, Callable[[Tensor], Tensor]],
    dtype: torch.dtype | None,
    image: Callable[[int, int], Tensor],
    rounds: int,
) -> Times:
    """The fastest of some rounds, the first of which prepares: more for parts whose error counts many times."""

    def fastest(x: Tensor) -> dict[str, float]:
        runs = [{mode: _run(module, forward, dtype, x) for mode, forward in forwards.items()} for _ in range(rounds)]
        found = {mode: min(run[mode][1] for run in runs) for mode in forwards}
        return {"first": min(run["none"][0] for run in runs), **found}

    batch_size, whole = 2, image(2, _WHOLE)
    while _run(module, forwards["none"], dtype, whole)[1] < _LONG_ENOUGH and batch_size < _LARGEST:
        batch_size, whole = 2 * batch_size, image(2 * batch_size, _WHOLE)
    # A few pixels take what the part takes for any batch: its calls, its parameters and their gradients.
    fixed, times = fastest(image(2, _FEW)), fastest(whole)
    return {name: (fixed[name], max(times[name] - fixed[name], 0.0) / batch_size) for name in times}


def _materialise(module: nn.Module, device: torch.device) -> None:
    """Put a module on the device, filled with a number: random ones are for training."""
    module.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)


def _run(
    module: nn.Module, forward: Callable[[Tensor], Tensor], dtype: torch.dtype | None, x: Tensor
) -> tuple[float, float]:
    """Seconds of the forward pass, and of both."""
    x.grad = None
    for p in module.parameters():
        p.grad = None
    begin = now(x.device)
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
        y = forward(x)
    first = now(x.device) - begin
    if not y.requires_grad:
        return first, first
    gradient = torch.ones_like(y)
    begin = now(x.device)
    y.backward(gradient)  # type: ignore[no-untyped-call]
    return first, first + now(x.device) - begin
