"""Optimizers that torch does not have: LAMB, and Muon for convolutions. SGD and AdamW are torch's own.

Their state lies with each parameter and is tensors alone, so it goes by parameters' names into a checkpoint and is read
back with `weights_only=True`. It is kept and computed in the parameters' own precision: nothing is rounded to bf16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd


class Lamb(torch.optim.Optimizer):
    """LAMB (1904.00962): Adam's update of each tensor scaled to a share of that tensor's norm; for large batches.

    Computes what timm's `Lamb` does by default, which is NVIDIA's NVLAMB: all gradients together are first brought to a
    norm of at most `clip` (None leaves them), weight decay is a part of the update, and a tensor without weight decay
    is updated as by Adam, unscaled.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
    ) -> None:
        self.clip = clip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a `closure` that computes the loss anew is run first, and what it returns is returned."""
        loss = _run(closure)
        scale = self._scale_of_gradients()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad if scale is None else p.grad * scale, group)
        return loss

    def _scale_of_gradients(self) -> Tensor | None:
        """What brings the norm of all gradients down to `clip`, at most 1."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.clip is None or not gradients:
            return None
        return (self.clip / nn.utils.get_total_norm(gradients)).clamp(max=1.0)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU: reading it makes no device wait
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        update = (mean / (1 - beta1**step)).div_(root)
        if group["weight_decay"]:
            update.add_(p, alpha=group["weight_decay"])
            weight, length = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
            update.mul_(torch.where((weight > 0) & (length > 0), weight / length, 1.0))
        p.add_(update, alpha=-group["lr"])


class Muon(torch.optim.Optimizer):
    """Muon for convolutions (2502.16982 and timm's `Muon`), SGD with Nesterov momentum for everything else.

    Groups marked `"orthogonal": True` hold convolution weights, (out, in, height, width), or matrices. Their momentum,
    reshaped to (out, rest), is made nearly orthogonal by `steps` Newton-Schulz iterations, so that all its directions
    count alike, and scaled so that its root mean square is 0.2, as Adam's updates have; their weight decay is
    decoupled, as AdamW's. The other groups are trained as by `torch.optim.SGD`, at their own learning rate.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"steps": steps, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a `closure` that computes the loss anew is run first, and what it returns is returned."""
        loss = _run(closure)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["orthogonal"]:
                for p in parameters:
                    self._turn(p, group)
            elif parameters:
                self._sgd(parameters, group)
        return loss

    def _turn(self, p: Tensor, group: dict[str, Any]) -> None:
        """Move a weight along its orthogonalised momentum."""
        assert p.grad is not None
        state, momentum, lr = self.state[p], group["momentum"], group["lr"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        update = p.grad.lerp(average, momentum) if group["nesterov"] else average
        direction = orthogonalised(update.reshape(len(p), -1), group["steps"])
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(direction.reshape(p.shape), alpha=-lr * 0.2 * max(direction.shape) ** 0.5)

    def _sgd(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """What `torch.optim.SGD` does, by its own function."""
        buffers: list[Tensor | None] = [self.state[p].get("momentum_buffer") for p in parameters]
        sgd(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"] and group["momentum"] > 0,
            maximize=False,
        )
        for p, buffer in zip(parameters, buffers, strict=True):
            if buffer is not None:
                self.state[p]["momentum_buffer"] = buffer


# Of the quintic polynomial of each iteration; the last one is repeated. From modded-nanogpt's search, as timm has them.
_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (m, n) with its singular values brought near 1 by Newton-Schulz iterations; zeros stay zeros.

    Each iteration multiplies x from the left by a polynomial of x @ x.mT. That square matrix is all that is iterated,
    and what multiplies is gathered: two products with the wide matrix in place of two in each step. All factors are
    polynomials of one matrix, and commute.
    """
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = (wide / torch.linalg.matrix_norm(wide).clamp(min=1e-7)).contiguous()
    square = x @ x.mT
    factor = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for number in range(steps):
        a, b, c = _COEFFICIENTS[min(number, len(_COEFFICIENTS) - 1)]
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)
        half = torch.addmm(square, polynomial, square, beta=a)
        square = torch.addmm(half, half, polynomial, beta=a)
        factor = torch.addmm(factor, polynomial, factor, beta=a)
    x = factor @ x
    return x if wide is matrix else x.mT


def suits_muon(p: Tensor) -> bool:
    """Whether a parameter is a convolution's weight that has directions to make orthogonal.

    Depthwise ones have one row of numbers a channel, and a matrix with a side below 4 or 128 times as long as wide has
    next to none: timm's bounds.
    """
    if p.ndim != 4 or p.shape[1] == 1:
        return False
    sides = sorted((p.shape[0], p[0].numel()))
    return sides[0] >= 4 and sides[1] <= 128 * sides[0]


def _run(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
