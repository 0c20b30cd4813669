"""A checkpoint of any library: its tensors, whose names they have, and what is known of the network that they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from residuum.config import CONVS, ResNetConfig
from residuum.errors import ConfigError, WeightsError, quoted
from residuum.nn.resnet import ResNet
from residuum.preprocessing import Preprocessing
from residuum.weights.detection import infer_config
from residuum.weights.layouts import LAYOUTS, rename

State = dict[str, Tensor]
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNFOLDED = 2**26  # bytes of tensors that views may unfold to beyond what is stored


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one network and what came with them.

    `tensors` have the names of `layout`, without what wrappers put before them. `source` says where they are from, as
    messages do. `classes` and `preprocessing` are None where nothing says them.
    """

    tensors: Mapping[str, Tensor]
    layout: str
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    source: str
    said: Mapping[str, Any] = field(default_factory=dict)  # fields of the config that the source itself says
    notes: tuple[str, ...] = ()  # on how the network was found among other tensors, in sentences
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of a file of ours: all that was saved with the weights
    several_classes: bool = False  # whether an image may be of several

    @cached_property
    def config(self) -> ResNetConfig:
        """The network's config: what the source says, and else what the weights tell; raises `WeightsError`."""
        try:
            if len(self.said) == len(ResNetConfig.__dataclass_fields__):
                return ResNetConfig.from_dict(dict(self.said))
            return infer_config(self.tensors).replace(**self.said)
        except WeightsError as error:
            raise WeightsError(f"{self.source}: {error}") from None
        except ConfigError as error:
            raise WeightsError(f"{self.source}: no config fits these weights: {error}") from None


@dataclass(frozen=True)
class Fit:
    """How tensors go into a network. Names are the network's own, but for `unexpected`, which are the source's."""

    state: State  # what fits, adapted to the network
    renamed: dict[str, str]  # the source's name to ours, where they differ
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # of another shape
    notes: tuple[str, ...]  # what was adapted, in sentences
    new_head: bool  # whether the source's classifier was left out for one of another size


def expected_state(config: ResNetConfig, tensors: Mapping[str, Tensor], source: str) -> State:
    """Names and shapes of a config's network, on the meta device; raises `WeightsError` for one that is far larger
    than the tensors at hand, before anything of it is built.
    """
    convolutions = sum(n * CONVS[kind] for n, kind in zip(config.depths, config.kinds, strict=True))
    if convolutions > len(tensors):
        raise WeightsError(
            f"{source} says a network of {convolutions} convolutions, but holds {len(tensors)} tensors; it is damaged"
        )
    return on_meta(config).state_dict()


def on_meta(config: ResNetConfig) -> ResNet:
    """A config's network on the meta device: names and shapes, and no data."""
    with torch.device("meta"), Undrawn():
        return ResNet(config)


class Undrawn(TorchFunctionMode):
    """Leaves out the random numbers of initialisation, for networks whose weights come from elsewhere.

    On the meta device they cost most: torch decomposes them there, and imports its compiler for that (2 s).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]  # torch.nn.init hands it over by name
        return func(*args, **(kwargs or {}))


def check_kinds(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise `WeightsError` for tensors that are not dense and plain, or that views unfold beyond what is stored."""
    stored: dict[int, int] = {}
    unfolded = 0
    for name, tensor in tensors.items():
        kind = _kind(tensor)
        if kind:
            raise WeightsError(
                f"{source} holds {kind} in {quoted(name)}; only dense tensors of plain numbers are read: save the "
                "state_dict() of the plain network"
            )
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        unfolded += tensor.numel() * tensor.itemsize
    if unfolded > 4 * sum(stored.values()) + _UNFOLDED:
        raise WeightsError(f"{source} holds views that unfold to {unfolded} bytes, more than it stores; it is damaged")


def unlike(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, unexpected, of another shape, or no floating-point number; or nothing."""
    for name in {**expected, **tensors}:
        if name not in tensors or name not in expected:
            return f"{quoted(name)} is {'unexpected' if name in tensors else 'missing'}"
        if tensors[name].shape != expected[name].shape:
            return f"{quoted(name)} is of shape {_shape(tensors[name])}, not {_shape(expected[name])}"
        if expected[name].is_floating_point() and tensors[name].dtype not in FLOATING:
            return f"{quoted(name)} is of type {str(tensors[name].dtype).removeprefix('torch.')}"
    return ""


def _shape(tensor: Tensor) -> str:
    return quoted(tuple(tensor.shape))


def _kind(tensor: Tensor) -> str:
    """What stands against a tensor, in words, or nothing."""
    if hasattr(tensor, "full_tensor"):
        return "a piece of a tensor that several processes share"
    if tensor.is_quantized:
        return "quantised numbers"
    if tensor.is_nested:
        return "nested tensors"
    if tensor.layout != torch.strided:
        return "sparse numbers"
    if tensor.is_meta:
        return "no data (it is on the meta device)"
    if tensor.is_complex():
        return "complex numbers"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a tensor of class {type(tensor).__name__}"
    return ""


def fit(
    tensors: Mapping[str, Tensor], layout: str, mine: Mapping[str, Tensor], source: str, *, own: bool = False
) -> Fit:
    """Bring tensors of a layout under the names of a network whose names and shapes are `mine`, and say what remains.

    The first convolution is adapted to the network's image channels. A classifier of another size, or of another form,
    is left out. Nothing is copied into the network. Raises `WeightsError` for tensors that are no weights, or no
    numbers. With `own` the network is the one that the tensors say they are, and nothing is adapted.
    """
    check_kinds(tensors, source)
    names = rename(tensors, LAYOUTS[layout], mine)
    state = {new: tensors[old] for old, new in names.items() if new in mine}
    unexpected = [old for old in tensors if names.get(old) not in mine and not old.endswith("num_batches_tracked")]
    notes = [] if own else _adapt_stem(state, mine)
    head_notes, new_head = _adapt_head(state, mine, [names.get(old, old) for old in unexpected], own=own)
    if head_notes:
        unexpected = [old for old in unexpected if not names.get(old, old).startswith("fc.")]
    notes += head_notes
    reshaped = [name for name, value in state.items() if value.shape != mine[name].shape]
    for name in reshaped:
        del state[name]
    for name, value in state.items():
        if value.dtype not in FLOATING and not name.endswith("num_batches_tracked"):
            kind = str(value.dtype).removeprefix("torch.")
            raise WeightsError(f"{source} holds numbers of type {kind} in {quoted(name)}, which are no plain weights")
    missing = [
        name
        for name in mine
        # A counter that no result depends on, or a classifier that is spoken of in the notes.
        if name not in state
        and name not in reshaped
        and not name.endswith("num_batches_tracked")
        and not (head_notes and name.startswith("fc."))
    ]
    check_finite(state, mine, source)
    renamed = {old: new for old, new in names.items() if new in state and old != new}
    return Fit(state, renamed, tuple(missing), tuple(unexpected), tuple(reshaped), tuple(notes), new_head)


def check_finite(state: Mapping[str, Tensor], mine: Mapping[str, Tensor], source: str) -> None:
    """Refuse what is no number, or will be none in the network's type; raises `WeightsError`."""
    bad = not_finite(state, {name: mine[name].dtype for name in state})
    if bad:
        raise WeightsError(f"{source} holds NaN or infinity in {some(bad)}; these weights are of no use")


def not_finite(state: Mapping[str, Tensor], types: Mapping[str, torch.dtype] | None = None) -> list[str]:
    """The names of tensors that hold NaN or infinity, or will in the types of a network, float32 where left out."""
    return [name for name, value in state.items() if not finite(value, types[name] if types else torch.float32)]


def finite(value: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all of a tensor are numbers, and are in `dtype` too; needs no memory of the tensor's size."""
    if not value.is_floating_point() or not value.numel():
        return True
    if value.dtype not in FLOATING:  # types of eight bits and fewer have few operations
        value = value.float()
    ends = torch.stack(value.detach().aminmax())  # NaN if any is
    return bool(ends.isfinite().all() and (dtype is None or ends.to(dtype).isfinite().all()))


def _adapt_stem(state: State, mine: Mapping[str, Tensor]) -> list[str]:
    """Fit the first convolution to the network's image channels, in place, and say so."""
    notes = []
    for name in ("conv1.weight", "conv1.0.weight"):
        if name not in state or name not in mine or state[name].ndim != 4 or not state[name].is_floating_point():
            continue
        weight, wanted = state[name], mine[name].shape
        before, after = weight.shape[1], wanted[1]
        others_fit = (weight.shape[0], *weight.shape[2:]) == (wanted[0], *wanted[2:])
        if before and before != after and others_fit:
            state[name] = adapt_channels(weight, after)
            how = "summed" if after == 1 else "repeated and rescaled"
            notes.append(f"the first convolution was {how} from {before} to {after} image channels")
    return notes


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (out, in, k, k) for another number of image channels, as timm's `adapt_input_conv`."""
    before = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // before), 1, 1)[:, :channels]
    return (repeated * (before / channels)).to(weight.dtype)


def _adapt_head(
    state: State, mine: Mapping[str, Tensor], unexpected: list[str], *, own: bool
) -> tuple[list[str], bool]:
    """Fit the classifier to the network in place, and say what was left out, and whether a new one is needed."""
    wanted = mine.get("fc.weight")
    head = state.get("fc.weight")
    other = sorted(name for name in unexpected if name.startswith("fc."))
    if head is not None and wanted is not None and wanted.ndim == 2:
        if head.ndim == 4 and head.shape[2:] == (1, 1):
            head = state["fc.weight"] = head.flatten(1)
        if not own and head.ndim == 2 and head.shape[0] != wanted.shape[0] and head.shape[1] == wanted.shape[1]:
            del state["fc.weight"]
            state.pop("fc.bias", None)
            return [
                f"the head of {head.shape[0]} classes was left out: the network has {wanted.shape[0]}, and its head "
                "was initialised anew"
            ], True
        return [], False
    heads = [name for name in mine if name.startswith("fc.")]
    if not heads:
        return (["the head was left out: the network has none"], False) if other else ([], False)
    if not any(name in state for name in heads):
        what = f"a head of another form ({some(other)}) was left out" if other else "the weights have no head"
        return [f"{what}: the network's own was left as it is"], False
    return [], False


def some(names: Any) -> str:
    """The first names of a list, quoted, and how many more there are."""
    names = list(names)
    return ", ".join(quoted(name, 60) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
