"""Stochastic depth (1603.09382): branches that training drops, by seeds that the training loop gives."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.fx.wrap  # a trace keeps the call, and draws in each pass
def thinned(
    branch: Tensor,
    rate: float,
    per_sample: bool,
    generator: torch.Generator | None = None,
    place: tuple[int, int] | None = None,
) -> Tensor:
    """The branch of which each sample, or the whole, is dropped at `rate`; survivors are scaled by 1 / (1 - rate).

    With a generator and a `place` the samples are those from the first number on, of so many that are drawn for.
    """
    rows = branch.shape[0] if per_sample else 1
    if generator is None:
        draws = torch.rand((rows, 1, 1, 1), device=branch.device)
    else:  # on the CPU, so that every device drops the same samples
        first, whole = place or (0, rows)
        draws = torch.rand((whole, 1, 1, 1), generator=generator)[first : first + rows]
        draws = draws.to(branch.device, non_blocking=True)
    return branch * ((draws >= rate) / (1 - rate)).to(branch.dtype)


class StochasticDepth(nn.Module):
    """Drops a branch in training at `rate` and scales what survives by 1 / (1 - rate) (1603.09382).

    `row` decides for each sample. `batch` decides for the whole batch; `skips` says so before the branch runs, so that
    its compute is saved. Random numbers are torch's own until `seed_stochastic_depth` gives seeds; the draws are then a
    function of the seed and of how many there have been since: `seed` and `draws`.
    """

    def __init__(self, rate: float, mode: str) -> None:
        super().__init__()
        self.rate, self.mode = rate, mode
        self.seed: str | None = None
        self.draws = 0
        self.place: tuple[int, int] | None = None  # of the samples, where others of the batch are elsewhere

    def skips(self, x: Tensor) -> bool:
        """Whether this pass leaves the branch out altogether. Compiled or traced none does: a graph has no branches."""
        if not self.training or self.rate == 0 or self.mode == "row" or _in_a_graph(x):
            return False
        if self.seed is None:
            return bool(torch.rand(()) < self.rate)
        return self._number() / 2**64 < self.rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        if _in_a_graph(branch):
            return thinned(branch, self.rate, self.mode == "row")
        if self.mode == "batch":  # it was not skipped
            return branch / (1 - self.rate)
        generator = None if self.seed is None else torch.Generator().manual_seed(self._number() >> 1)
        return thinned(branch, self.rate, True, generator, self.place)

    def _number(self) -> int:
        """The next of the seed's 64-bit numbers."""
        self.draws += 1
        return int.from_bytes(hashlib.blake2b(f"{self.seed} {self.draws}".encode(), digest_size=8).digest())

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}, mode={self.mode}"


def _in_a_graph(x: object) -> bool:
    return torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy)


def seed_stochastic_depth(model: nn.Module, shared_seed: int, own_seed: int) -> None:
    """Give the draws of every dropped branch in `model`, which may be wrapped, to two seeds; call it before each step.

    Blocks that are dropped for the whole batch draw from `shared_seed`, which all processes must have alike so that
    they skip the same; blocks that drop single samples draw from `own_seed`, which may differ between processes. Each
    block has draws of its own. Compiled networks draw from torch's default generator in any case.
    """
    blocks = (module for module in model.modules() if isinstance(module, StochasticDepth))
    for number, block in enumerate(blocks):
        block.seed, block.draws = f"{shared_seed if block.mode == 'batch' else own_seed} {number}", 0


class _Skipped(torch.autograd.Function):
    """The identity on x that gives zero gradients, not none, to the parameters of a branch that did not run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.clone()  # what follows may work in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return (grads[0], *(torch.zeros_like(p) for p in ctx.saved_tensors))


def without(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A copy of x whose backward pass gives zero gradients to the parameters of the branch that was left out."""
    return _Skipped.apply(x, *parameters)  # type: ignore[no-any-return]
