"""What is checkpointed, and nothing else: network, optimizer, average, progress. All in tensors and plain values.

There are no random generators in it: every draw is a function of seed, epoch, step and place. The learning rate is a
function of the step, and everything else is the recipe's.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from residuum.errors import RunError, first_line
from residuum.nn.resnet import ResNet

FORMAT = 2  # raised when an older package could not read it


@dataclass
class Progress:
    """How far a run is: finished epochs' metrics, the step that comes next, and this epoch's sums so far."""

    epoch: int = 0
    step: int = 0
    seen: int = 0  # images in this epoch so far
    seconds: float = 0.0  # of training and evaluation, in all
    spent: dict[str, float] = field(default_factory=dict)  # seconds by phase since the last row of the history
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.empty(0))  # one per step of this epoch, on the device
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))  # on the device

    def begin_epoch(self, steps: int, device: torch.device) -> None:
        """Empty sums for an epoch of so many steps."""
        self.step = self.seen = 0
        self.losses = torch.zeros(steps, device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)


@dataclass
class State:
    """A run's state. `network` is the raw one, however it is wrapped for training."""

    network: ResNet
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    progress: Progress = field(default_factory=Progress)
    class_weights: Tensor | None = None  # of the loss, (classes,): what recipe and data say, so it is not saved

    @property
    def result(self) -> ResNet:
        """The network that is evaluated and saved: the averaged one where there is one."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return next(self.network.parameters()).device

    def to_dict(self) -> dict[str, Any]:
        """Everything that going on from here needs, and its checksum. Optimizer state goes by the parameters' names."""
        progress = self.progress
        values: dict[str, Any] = {
            "format": FORMAT,
            "network": dict(self.network.state_dict()),
            "optimizer": {name: dict(self.optimizer.state.get(p, {})) for name, p in self.network.named_parameters()},
            "average": None,
            "averaged": 0,
            "progress": {name: getattr(progress, name) for name in Progress.__dataclass_fields__},
        }
        if self.average is not None:
            values["average"] = dict(self.result.state_dict())
            values["averaged"] = int(self.average.n_averaged)
        return values | {"sha256": checksum(values)}

    def restore(self, values: dict[str, Any]) -> None:
        """The inverse of `to_dict`; raises `RunError` where it is of another network, optimizer or recipe."""
        device = self.device
        try:
            if (self.average is None) != (values["average"] is None):
                raise ValueError("only one of them averages the weights")
            self.network.load_state_dict(values["network"])
            if self.average is not None:
                self.result.load_state_dict(values["average"])
                self.average.n_averaged.fill_(values["averaged"])
            self._restore_optimizer(values["optimizer"])
            saved = {"spent": {}} | values["progress"]  # which older states do not have
            counts = {name: saved[name] for name in Progress.__dataclass_fields__}
            self.progress = Progress(**counts)
            self.progress.losses, self.progress.correct = (counts[name].to(device) for name in ("losses", "correct"))
        except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise RunError(f"the saved state does not fit this run's recipe ({first_line(error)})") from None

    def _restore_optimizer(self, saved: dict[str, dict[str, Any]]) -> None:
        names = {p: name for name, p in self.network.named_parameters()}
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in ordered:
            for tensor in saved[names[p]].values():
                if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape != p.shape:
                    raise ValueError(f"the optimizer's state of {names[p]} has another shape")
        state = {number: saved[names[p]] for number, p in enumerate(ordered) if saved[names[p]]}
        # Groups keep what the recipe gave them, and what this device wants.
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def checksum(values: dict[str, Any]) -> str:
    """The SHA-256 of a state's tensors and values, whatever device they are on; its own entry is left out."""
    total = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                if name or key != "sha256":
                    add(f"{name}/{key}", value[key])
        elif isinstance(value, Tensor):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            total.update(f"{name} {json.dumps(value, sort_keys=True)}".encode())

    add("", values)
    return total.hexdigest()
