"""Freezing: early stages that do not train, and batch norms that stay as in evaluation."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.parametrize import is_parametrized

from residuum.errors import ConfigError
from residuum.nn.resnet import ResNet


class FrozenBatchNorm(_NormBase):
    """Batch norm that stays as in evaluation, whatever mode its network is in: fixed statistics, scale and shift.

    It is none of torch's batch norms, which `nn.SyncBatchNorm.convert_sync_batchnorm` and its like would take for one
    that trains. A norm becomes one in place, with its tensors, its hooks and its name.
    """

    thawed: type[_BatchNorm]

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)


def freeze(model: ResNet, stages: int = 2, *, norms: bool = True) -> ResNet:
    """Stop the training of the stem and the first stages, and of every batch norm unless `norms` is False; in place.

    0 stages leave stem and stages as they are. Names in the state dict stay, and so do the network's outputs in
    evaluation. Raises `ConfigError` for more stages than there are, and for a norm with a parametrisation.
    """
    most = len(model.stages)
    if not 0 <= stages <= most:
        raise ConfigError(f"stages is {stages}; this network has {most}, so it must be 0 to that")
    return _freeze(model, stages + 1 if stages else 0, all_norms=norms)


def freeze_parts(model: ResNet, parts: int) -> ResNet:
    """Stop the training of the first parts, 1 being the stem and 2 the first stage too, and of their batch norms.

    In place, otherwise as `freeze`; 0 leaves all as it is. The head is no part that can be frozen.
    """
    most = len(model.stages) + 1
    if not 0 <= parts <= most:
        raise ConfigError(f"parts is {parts}; this network has {most} before its head, so it must be 0 to that")
    return _freeze(model, parts, all_norms=False)


def _freeze(model: ResNet, parts: int, *, all_norms: bool) -> ResNet:
    early = [layer for part in model.parts()[:parts] for layer in part.layers.values()]
    found = [m for part in ([model] if all_norms else early) for m in part.modules() if isinstance(m, _BatchNorm)]
    if any(is_parametrized(norm) for norm in found):
        raise ConfigError("a batch norm with a parametrisation cannot be frozen; remove the parametrisation first")
    for layer in early:
        layer.requires_grad_(False)
    for norm in found:
        if norm.running_mean is not None:  # without running statistics evaluation takes the batch's, too
            norm.thawed, norm.__class__ = type(norm), FrozenBatchNorm  # type: ignore[assignment]
            norm.requires_grad_(False).eval()
    return model


def unfreeze(model: ResNet) -> ResNet:
    """Undo `freeze`, in place: every parameter trains again, and every norm is again what it was."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm):
            module.__class__ = module.__dict__.pop("thawed")
            module.train(model.training)
    return model.requires_grad_(True)
