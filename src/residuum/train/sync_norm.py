"""Chunks that processes share: batch norms take the statistics of all its images, and draws are those of the whole.

So a chunk comes to the same, but for the rounding of sums, however many processes compute it. torch's `SyncBatchNorm`
needs an accelerator; this runs on any device.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from residuum.nn.stochastic_depth import StochasticDepth
from residuum.train.losses import exact


class _Normalise(torch.autograd.Function):
    """Batch norm of (N, C, H, W) by mean and variance over all processes, (C,) each and given back with how many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = exact(x.device)
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        own = torch.cat([mean, var, mean.new_tensor([x.numel() // x.shape[1]])]).to(wide)
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own)
        means, variances, counts = torch.split(torch.stack(rows), [len(mean), len(var), 1], 1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        mean, var = mean.to(weight.dtype), var.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        gradient = grads[0]
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        if not ctx.needs_input_grad[0]:
            return None, dweight, dbias, None
        sums = torch.stack([dweight, dbias]).to(count.dtype)
        dist.all_reduce(sums)
        of_weight, of_bias = (sums / count).to(weight.dtype)
        # weight / std * (gradient - mean of gradients - normalised x * mean of gradient * normalised x), as a product
        # with each of the two and a constant.
        invstd = (var + ctx.eps).rsqrt()
        factor = weight * invstd
        slope = -factor * invstd * of_weight
        constant = -factor * of_bias - slope * mean
        factor, slope, constant = (t[:, None, None] for t in (factor, slope, constant))
        dx = torch.addcmul(constant, gradient.float(), factor).addcmul_(x.float(), slope)
        return dx.to(x.dtype), dweight, dbias, None


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training are of the images of all processes; each may have as many as it likes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * (count / (count - 1)).to(var.dtype), share)
        return out  # type: ignore[no-any-return]


class _SharedDropout(nn.Dropout):
    """Dropout that draws for a whole chunk, of which it is given the images from `place[0]` on, out of `place[1]`."""

    place = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        first, whole = self.place
        return x * F.dropout(x.new_ones(whole, *x.shape[1:]), self.p)[first : first + len(x)]


def share_chunks(network: nn.Module) -> None:
    """Let norms and draws be of chunks that processes share, in place; each process calls the network alike."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm
        elif type(module) is nn.Dropout:
            module.__class__ = _SharedDropout


def place_draws(network: nn.Module, first: int, whole: int) -> None:
    """Say which images of a chunk of `whole` come next: those from `first` on."""
    for module in network.modules():
        if isinstance(module, _SharedDropout | StochasticDepth):
            module.place = (first, whole)
