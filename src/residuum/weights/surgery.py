"""Whether a network is still what its config says, so that a file of weights and config is the whole of it.

torch's private surface is used here for hooks, which no public function lists.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, WeightsError, quoted
from residuum.nn.freezing import FrozenBatchNorm
from residuum.nn.resnet import ResNet
from residuum.nn.wrapping import unwrapped, why_not_ours
from residuum.weights.checkpoint import State, check_kinds, on_meta, unlike

# Of layers: what matters in training alone, or changes speed and memory but no result.
_NO_MATTER = frozenset(
    {"training", "several_classes", "inplace", "momentum", "p", "rate", "mode", "track_running_stats", "seed", "draws"}
)
_INNER = ("_orig_mod.", "_checkpoint_wrapped_module.")  # torch.compile and checkpoint_wrapper around a part


def whole_network(model: nn.Module) -> tuple[ResNetConfig, State]:
    """Config and state of a network, if these two are all of it; raises `WeightsError` where they are not.

    A plain linear classifier of another size, none, or a first convolution for other images is told by the config.
    """
    network = unwrapped(model)
    if not isinstance(network, ResNet):
        raise WeightsError(f"a {type(network).__name__} is not saved; give a residuum.ResNet")
    if (why := why_not_ours(network)) is not None:
        raise WeightsError(f"nothing was saved: {why}")
    _refuse_additions(network)
    state = {_plain(name): tensor for name, tensor in network.state_dict().items()}
    config = _told(network)
    like = on_meta(config)
    check_kinds(state, "the network")
    wrong = unlike(state, like.state_dict())
    if wrong:
        raise _refusal(wrong)
    _refuse_replaced(network, like)
    return config, state


def _refusal(why: str) -> WeightsError:
    return WeightsError(f"nothing was saved: the network is not what its config says: {why}; save its state_dict()")


def _plain(name: str) -> str:
    for inner in _INNER:
        name = name.replace(inner, "")
    return name


def _told(network: ResNet) -> ResNetConfig:
    """The config with the classes and the image channels that the network has by now."""
    changes: dict[str, Any] = {}
    head, first = network.fc, network.conv1
    if type(head) is nn.Linear:
        changes["num_classes"] = head.out_features
    elif type(head) is nn.Identity:
        changes["num_classes"] = 0
    first = first[0] if isinstance(first, nn.Sequential) and len(first) else first
    if isinstance(first, nn.Conv2d) and first.groups == 1:
        changes["in_channels"] = first.in_channels
    changes = {name: value for name, value in changes.items() if value != getattr(network.config, name)}
    try:
        return network.config.replace(**changes) if changes else network.config
    except ConfigError as error:
        raise _refusal(str(error)) from None


def _refuse_additions(network: ResNet) -> None:
    """Refuse what lies in a network beside its tensors and layers, and changes what comes out."""
    if type(network).forward is not ResNet.forward:
        raise WeightsError("nothing was saved: the network's class has a forward of its own, which no file can carry")
    for name, module in network.named_modules():
        at = quoted(name or "the network")
        if parametrize.is_parametrized(module):
            raise WeightsError(
                f"nothing was saved: {at} is parametrised, which no file can carry; call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if any(parameter.endswith("_orig") for parameter in module._parameters):
            raise WeightsError(
                f"nothing was saved: {at} is pruned, which no file can carry; call torch.nn.utils.prune.remove first"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise WeightsError(
                f"nothing was saved: {at} has a forward hook, which no file can carry; remove it by its handle first"
            )
        replaced = vars(module).get("forward")
        compiled = "_orig_mod" in module._modules
        if replaced is not None and not compiled and not _of_ours(replaced):
            raise WeightsError(f"nothing was saved: the forward of {at} was replaced, which no file can carry")
        if any(hasattr(parameter, "full_tensor") for parameter in module._parameters.values()):
            raise WeightsError(
                "nothing was saved: the network is spread over processes; bring its full state dict "
                "(torch.distributed.checkpoint.state_dict.get_model_state_dict) into a plain network and save that"
            )


def _of_ours(forward: Any) -> bool:
    """Whether a module's own forward is one that recomputes, which changes no result."""
    return str(getattr(getattr(forward, "func", forward), "__module__", "")).startswith("residuum.")


def _refuse_replaced(network: ResNet, like: ResNet) -> None:
    """Refuse layers that have the same tensors as the config's but do something else with them."""
    modules = {_plain(f"{name}."): module for name, module in network.named_modules(remove_duplicate=False)}
    for name, expected in like.named_modules():
        # The innermost of a name is the layer: a wrapper comes before what it wraps.
        found = modules.get(f"{name}.")
        if found is None:
            raise _refusal(f"{quoted(name)} is missing")
        if not _same_class(expected, found):
            raise _refusal(f"{quoted(name)} is a {type(found).__name__}, not a {type(expected).__name__}")
        for attribute, value in vars(expected).items():
            if attribute.startswith("_") or attribute in _NO_MATTER or not isinstance(value, int | float | str | tuple):
                continue
            other = getattr(found, attribute, value)
            if other != value:
                raise _refusal(f"{attribute} of {quoted(name)} is {quoted(other)}, not {quoted(value)}")


def _same_class(expected: nn.Module, found: nn.Module) -> bool:
    """Whether a layer computes what another does: of one class, or of a class that only trains in another way."""
    if isinstance(expected, _BatchNorm | nn.ReLU):  # frozen and synchronised norms; ReLUs that write to new memory
        return isinstance(found, _BatchNorm | FrozenBatchNorm if isinstance(expected, _BatchNorm) else nn.ReLU)
    if isinstance(expected, nn.Dropout):
        return isinstance(found, nn.Dropout | nn.Identity)
    same = type(found) is type(expected)
    return same or (isinstance(found, type(expected)) and type(found).forward is type(expected).forward)
