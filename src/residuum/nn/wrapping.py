"""Networks that torch has wrapped or sharded: what is inside, and why one is not a network of ours as it stands."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

from residuum.nn.resnet import ResNet

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile."""
    while True:
        inner = model._modules.get("_orig_mod") or (model.module if isinstance(model, _WRAPPERS) else None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def sharded(model: nn.Module) -> bool:
    """Whether the network's weights are spread over processes, by `fully_shard` for one."""
    return any(hasattr(tensor, "full_tensor") for tensor in (*model.parameters(), *model.buffers()))


def why_not_ours(model: object) -> str | None:
    """What to say of a model that is no plain `residuum.ResNet`; None of one that is."""
    name = f"the model is a {type(model).__module__}.{type(model).__qualname__}"
    if not isinstance(model, ResNet):
        for attribute in ("module", "_orig_mod"):
            if isinstance(model, nn.Module) and isinstance(getattr(model, attribute, None), nn.Module):
                return f"{name} around a network; give the network, its .{attribute}"
        return f"{name}; give a residuum.ResNet, unwrapped"
    if sharded(model):
        return (
            "the network's weights are spread over processes (FSDP); do this before they are, or gather them into a "
            "plain network"
        )
    return None
