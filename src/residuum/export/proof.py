"""Whether what was exported answers as the network does."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from residuum.errors import ExportError

# The largest difference of an output, as a share of the largest output, that a precision allows.
TOLERANCE = {"fp32": 1e-5, "bf16": 0.03, "fp16": 0.03}


def prove(run: Callable[[Tensor], Tensor], network: nn.Module, batches: Iterable[Tensor], precision: str) -> float:
    """The largest difference between `run` and the network, as a share of the largest output; not over `TOLERANCE`.

    Raises `ExportError` where it is more, or where an output is no number.
    """
    worst = 0.0
    for images in batches:
        with torch.autocast(images.device.type, enabled=False):
            expected, got = network(images).float(), run(images).float()
        if not (expected.isfinite().all() and got.isfinite().all()):
            raise ExportError("the network's outputs are not all numbers, so an export cannot be compared with it")
        if got.shape != expected.shape:
            raise ExportError(f"the exported network gives {tuple(got.shape)} where it should {tuple(expected.shape)}")
        least = torch.finfo(torch.float32).tiny
        worst = max(worst, float((got - expected).abs().amax() / expected.abs().amax().clamp_min(least)))
    if worst > TOLERANCE[precision]:
        raise ExportError(
            f"the exported network's outputs differ from the network's by {worst:.2g} of the largest, more than "
            f"{TOLERANCE[precision]:g} in {precision}; it is not given out"
            + ("" if precision == "fp32" else "; export in fp32")
        )
    return worst
