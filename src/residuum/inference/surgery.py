"""What users put into a network: hooks, masks, parametrisations, layers of their own; and a copy that keeps it all."""

import copy
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from residuum.errors import ConfigError, DeviceError, first_line, quoted
from residuum.nn.resnet import ResNet
from residuum.nn.wrapping import why_not_ours

# Hooks that set a tensor of their layer before it runs, and do nothing else.
_TENSOR_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)
_FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def copied(model: nn.Module) -> ResNet:
    """A copy for evaluation, whose layers are the model's with all that was put into them; the hooks are the same ones.

    Raises `ConfigError` or `DeviceError`, before anything is done, for a model that is no ResNet, is wrapped, runs
    otherwise than its class says, or has no weights to copy.
    """
    network = _network(model)
    memo: dict[int, Any] = {}
    for module in network.modules():
        for name, value in vars(module).items():
            if name.endswith("_hooks"):  # a hook may be a method of something large, or of a recorder that is read
                memo |= {id(hook): hook for hook in value.values()}
            elif isinstance(value, Tensor) and not value.is_leaf:  # as pruning leaves it; deepcopy refuses it
                memo[id(value)] = value.detach().clone()
    try:
        copy_of = copy.deepcopy(network, memo)
    except Exception as error:  # whatever a user's module says
        raise ConfigError(
            f"the network cannot be copied ({first_line(error)}); leave out what holds files, locks or processes"
        ) from error
    for module in copy_of.modules():
        _without_recomputation(module)
    _unwrap_compiled(copy_of)
    if network.training:
        copy_of.eval()
    return copy_of.requires_grad_(False)


def hooked(module: nn.Module) -> bool:
    """Whether a hook runs with the module's forward pass. Hooks of a backward pass do not matter to inference."""
    return any(getattr(module, name) for name in _FORWARD_HOOKS)


def runs_as_its_class_says(module: nn.Module) -> bool:
    """Whether a module is in evaluation and has the methods of its class, hooks aside."""
    return not module.training and not _replaced(module)


def kind(module: nn.Module) -> type[nn.Module] | None:
    """The class whose forward pass the module runs and nothing else, in evaluation; None where that is not sure.

    torch's own parametrisations and pruning only set a weight, which `settled` gives.
    """
    if not runs_as_its_class_says(module):
        return None
    if module._forward_hooks or not all(isinstance(h, _TENSOR_HOOKS) for h in module._forward_pre_hooks.values()):
        return None
    if not parametrize.is_parametrized(module):
        return type(module)
    steps = [step for steps in module.parametrizations.values() for step in steps]  # type: ignore[operator]
    ours = all(type(step).__module__ == "torch.nn.utils.parametrizations" and not hooked(step) for step in steps)
    return type(module).__mro__[1] if ours else None


def own_hooks(network: nn.Module) -> list[str]:
    """The modules on which hooks run that are more than masks, as a message names them: 'layer4.1', the network."""
    only_masks = [
        (name, not m._forward_hooks and all(isinstance(h, _TENSOR_HOOKS) for h in m._forward_pre_hooks.values()))
        for name, m in network.named_modules()
    ]
    return [quoted(name) if name else "the network" for name, masks in only_masks if not masks]


def settled(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that the layer runs with, as masks and parametrisations make it."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
    return getattr(module, name)  # type: ignore[no-any-return]


def is_ordinary(tensor: Tensor | None) -> bool:
    """Whether a tensor, where there is one, holds plain floating-point numbers, not a library's compressed ones."""
    if tensor is None:
        return True
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.layout is torch.strided


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Let `target` call the forward hooks of `source`."""
    for name in (*_FORWARD_HOOKS, *(n for n in vars(source) if n.startswith(tuple(f"{h}_" for h in _FORWARD_HOOKS)))):
        setattr(target, name, getattr(source, name))


def _without_recomputation(module: nn.Module) -> None:
    """Take back what `residuum.recompute` set: without gradients nothing is recomputed."""
    for name in [name for name in vars(module) if _is_recomputation(module, name)]:
        delattr(module, name)


# -- what is refused ---------------------------------------------------------------------------------------------------


def _network(model: object) -> ResNet:
    if (why := why_not_ours(model)) is not None:
        raise ConfigError(why)
    assert isinstance(model, ResNet)
    tensors = list(chain(model.parameters(), model.buffers()))
    if any(is_lazy(t) for t in tensors):
        raise ConfigError("the network has a layer whose weights do not exist yet; run it once on images")
    devices = sorted({str(t.device) for t in tensors})
    if "meta" in devices:
        raise DeviceError("the network is on the meta device and has no weights; load them first")
    if len(devices) > 1:
        raise DeviceError(f"the network is spread over {', '.join(devices)}; move it to one device")
    overridden = _overridden(type(model)) or [n for n in _replaced(model) if not _is_recomputation(model, n)]
    if overridden:
        raise ConfigError(
            f"the network runs its own {', '.join(sorted(overridden))} instead of ResNet's, and what that does is not "
            "known; give a plain residuum.ResNet, with the change made by layers or hooks"
        )
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise ConfigError("a hook on all modules is registered in torch (by a profiler?); remove it first")
    return model


def _overridden(cls: type) -> list[str]:
    """What a subclass has in place of what ResNet does with images."""
    runs = {name for name, value in vars(ResNet).items() if callable(value) or isinstance(value, property)}
    runs = {name for name in runs if name != "__init__" and not name.startswith("reset")} | {"__call__", "_call_impl"}
    own = cls.__mro__[: cls.__mro__.index(ResNet)]
    return [name for base in own for name in vars(base) if name in runs]


def _replaced(module: nn.Module) -> list[str]:
    """Methods of the class for which this one module has something else."""
    return [name for name in vars(module) if callable(getattr(type(module), name, None))]


def _is_recomputation(module: nn.Module, name: str) -> bool:
    run = vars(module)[name]
    return isinstance(run, partial) and run.func.__module__.startswith("residuum.memory.")


def _unwrap_compiled(network: nn.Module) -> None:
    """Put the layers that `torch.compile` wrapped back in their places; compiling changes no result."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if type(child).__module__ == "torch._dynamo.eval_frame" and child is not None and not hooked(child):
                setattr(parent, name, child._orig_mod)
