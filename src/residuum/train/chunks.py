"""A step that is cut into chunks, of which each process takes some, in turn.

A chunk is what batch norms take their statistics of, what mixing finds partners in, and what loses a branch as a whole.
The loss is the sum over the images of a step, divided by their number, however many processes and chunks there are.
Gradients are added in pairs, of chunks, then of pairs of chunks: so a process adds as two with half as many do.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from residuum.data.loaders import Schedule
from residuum.train.distributed import Replica, Team
from residuum.train.losses import exact
from residuum.train.step import Counted, Loss, forward


@dataclass(frozen=True)
class Cut:
    """How a step is cut: into `count` chunks, of which `own` are this process's, of so many images each.

    Where processes share chunks, all are its own, of each it has `sizes` images, and `places` says from which one on,
    of how many.
    """

    count: int = 1
    own: range = range(1)
    sizes: tuple[int, ...] = ()
    places: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, schedule: Schedule) -> "Cut":
        """That of a loader's steps."""
        own = schedule.own_chunks
        parts = [(schedule.part(number), schedule.chunk(number)) for number in own]
        places = [(part.start - chunk.start, chunk.stop - chunk.start) for part, chunk in parts]
        sizes = tuple(part.stop - part.start for part, _ in parts)
        return cls(schedule.chunks, own, sizes, tuple(places) if schedule.shared else ())

    @property
    def held(self) -> int:
        """How many times the gradients of all parameters are kept, at most, while a chunk is computed."""
        return (len(self.own) - 1).bit_length()

    def apart(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images or labels of this process, by chunk; as even as can be where some are missing."""
        if len(images) == sum(self.sizes):
            return torch.split(images, list(self.sizes))
        return torch.tensor_split(images, len(self.own))


class _Statistics:
    """Running statistics of the batch norms that train: each chunk moves them on from where the step found them."""

    def __init__(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
        self.running = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self.counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.before = [[t.clone() for t in tensors] for tensors in (self.running, self.counts)]
        self.sizes = [t.numel() for t in (*self.running, *self.counts)]

    def begin(self) -> None:
        """Before a chunk."""
        for tensors, before in zip((self.running, self.counts), self.before, strict=True):
            if tensors:
                torch._foreach_copy_(tensors, before)

    def taken(self) -> list[Tensor]:
        """After a chunk."""
        return [t.flatten() for t in (*self.running, *self.counts)]

    def end(self, chunks: Tensor) -> None:
        """After the step: what was taken of each of its chunks, a row each, becomes what it leaves.

        A chunk in which a block is left out has not moved that block's statistics.
        """
        for place, (t, values) in enumerate(
            zip((*self.running, *self.counts), torch.split(chunks, self.sizes, 1), strict=True)
        ):
            counts = place >= len(self.running)
            t.copy_((values.amax(0) if counts else values.mean(0)).view_as(t))


def train_chunks(
    net: Callable[[Tensor], Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    chunks: Iterable[tuple[Tensor, Tensor]],
    cut: Cut,
    images: int,
    team: Team,
    *,
    bf16: bool,
    loss: Loss,
    lap: Callable[[Literal["forward", "backward"]], None] = lambda phase: None,
) -> Counted:
    """One step of `images` in all processes, of which `chunks` are this one's; `net` is the network as it is called.

    The same in every process: parameters, running statistics of batch norms, the loss and the right answers of all
    images. With several processes `net` is a `Replica`.
    """
    optimizer.zero_grad(set_to_none=True)
    learning = [p for p in network.parameters() if p.requires_grad]
    statistics, device = _Statistics(network), learning[0].device
    found = torch.zeros(cut.count, 2 + sum(statistics.sizes), dtype=exact(device), device=device)
    held: list[list[Tensor]] = []  # sums of gradients of 1, 2, 4, ... chunks, the largest first
    whole = torch.long
    for number, (inputs, targets) in zip(cut.own, chunks, strict=True):
        statistics.begin()
        last = number == cut.own[-1]
        if last and isinstance(net, Replica):
            net.held = held
        with net.alone() if isinstance(net, Replica) and not last else contextlib.nullcontext():
            mean, correct = forward(net, inputs, targets, bf16=bf16, loss=loss)
            lap("forward")
            share = mean * (len(inputs) / images)
            share.backward()  # type: ignore[no-untyped-call]
            lap("backward")
        row = (share.detach()[None], correct[None], *statistics.taken())
        torch.cat([t.to(found.dtype) for t in row], out=found[number])
        if cut.places and not team.first:  # each has the statistics of all
            found[number, 2:] = 0
        whole = correct.dtype
        if not last:
            _hold(held, _taken(learning), number - cut.own[0] + 1)
    if not isinstance(net, Replica):
        for part in reversed(held):
            torch._foreach_add_([p.grad for p in learning if p.grad is not None], part)
    optimizer.step()
    team.sum(found)  # of each row all but one process have zeros, or all but one of its statistics
    statistics.end(found[:, 2:])
    total, correct = found[:, :2].sum(0)
    return Counted(total.float(), correct.to(whole))


def _taken(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Their gradients, which they then have no more."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return gradients


def _hold(held: list[list[Tensor]], gradients: list[Tensor], count: int) -> None:
    """Add the `count`-th chunk's gradients to sums of as many chunks each, as carrying does in a binary number."""
    while count % 2 == 0:
        torch._foreach_add_(gradients, held.pop())
        count //= 2
    held.append(gradients)
