"""Bytes of tensors that are alive while operations run, counted at torch's dispatcher."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from residuum.nn.resnet import ResNet


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that are alive, of those that operations under it have made: `now`, and at most, `peak`.

    Counted by storage at the dispatcher, so on every device; what an operation uses within itself is not seen. `trace`
    is `now` after each operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.trace: list[int] = []
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count what was there before."""
        for tensor in tensors:
            self._know(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._alive:
                self._know(storage, storage.nbytes())
        self.trace.append(self.now)
        return out

    def _know(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)

        def freed(_: object) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage, freed)


def kept_bytes(model: ResNet, images: Tensor) -> int:
    """Bytes that a forward pass on `images` leaves behind for backward, output included, at the network's modes.

    `images` are (N, C, H, W), on the network's device. Parameters, buffers and the images themselves do not count.
    """
    live = Live()
    live.leave_out([*model.parameters(), *model.buffers(), images])
    with live:
        out = model(images)  # holds the graph, and so what it keeps
    kept = live.now
    del out
    return kept
