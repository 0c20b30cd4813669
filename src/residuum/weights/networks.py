"""Which tensors of a checkpoint are a network: found by what remains fitting one, whatever stands before the names."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from residuum.errors import WeightsError, quoted
from residuum.weights.layouts import LAYOUTS, block_patterns, recognise, to_theirs
from residuum.weights.pickles import Array

State = dict[str, Tensor]
_DEEPEST = 6  # tables within tables that are looked into
_MOST_TABLES = 10_000
_LONGEST_NAME = 300
_MOST_NETWORKS = 64
# Tensors that tools leave beside weights: torch's AveragedModel, thop, and losses that have parameters.
_COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
_LOSSES = frozenset({"criterion", "loss", "loss_fn", "loss_function"})
_AVERAGED = frozenset({"ema", "swa", "avg", "averaged", "average", "shadow"})
# Where repositories keep the classifier of a network that is under a prefix of its own.
_HEADS = ("head.fc", "cls_head.fc", "head", "fc", "linear", "classifier", "last_linear")


@dataclass(frozen=True)
class Network:
    """One network in a checkpoint: where it lies, the layout of its names, its tensors, and what lies beside them."""

    name: str
    layout: str
    tensors: State
    beside: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """Whether a classifier is among its tensors."""
        return to_theirs("fc.weight", LAYOUTS[self.layout]) in self.tensors or "fc.weight" in self.tensors

    @property
    def averaged(self) -> bool:
        """Whether its name says that it is an averaged copy of another."""
        return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", self.name.lower()))


def choose(tree: object, where: str, named: str | None = None) -> tuple[Network, list[str]]:
    """The network of a checkpoint, or the one that is `named`, and what there is to say of the choice, in sentences.

    Where there are several, the only one that is no averaged copy is taken, and among these the only one that has a
    classifier. Raises `WeightsError` for none, for several
    of which none is named, and for a name that is not there.
    """
    tables = list(_tables(tree, ()))
    if not tables:
        raise WeightsError(f"{where} holds no state dict: no table of names and tensors")
    try:
        networks = _without_twins([network for path, table in tables for network in _networks(path, table)])
    except WeightsError as error:
        raise WeightsError(f"{where} cannot be taken apart: {error}; name its networks otherwise") from None
    if not networks:
        try:
            recognise(max((table for _, table in tables), key=len))
        except WeightsError as error:
            raise WeightsError(f"{where}: {error}") from None
        raise WeightsError(f"{where} holds no network that is known here")
    listed = ", ".join(quoted(network.name) for network in networks[:5]) if networks[0].name else "one without a name"
    if named is not None:
        wanted = named.strip(".")
        exact = [n for n in networks if n.name == wanted] or [
            n for n in networks if n.name.startswith(f"{wanted}.") or n.name.endswith(f".{wanted}")
        ]
        if len(exact) != 1:
            raise WeightsError(f"{where} has {len(exact) or 'no'} networks named {quoted(named)}; it has {listed}")
        return exact[0], []
    plain = [network for network in networks if not network.averaged]
    if len(networks) == 1:
        notes = [f"these are averaged weights, {quoted(networks[0].name)}"] if not plain else []
        return networks[0], notes
    whole = [network for network in plain if network.has_head]
    if len(plain) != 1 and len(whole) != 1:
        raise WeightsError(f"{where} holds {len(networks)} networks: {listed}; name one of them as prefix")
    taken = plain[0] if len(plain) == 1 else whole[0]
    others = [network for network in networks if network is not taken]
    what = "an averaged copy" if all(n.averaged for n in others) else "another network, without a classifier,"
    return taken, [f"{what} was left out: prefix {' or '.join(quoted(n.name) for n in others[:5])} takes it"]


def _tables(
    tree: object, path: tuple[str, ...], seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every mapping in a checkpoint that has tensors directly in it, and the keys that lead there."""
    seen = set() if seen is None else seen
    if isinstance(tree, nn.Module):
        tree = tree.state_dict()
    if not isinstance(tree, Mapping) or id(tree) in seen or len(seen) > _MOST_TABLES:
        return
    seen.add(id(tree))
    tensors = {}
    for key, value in tree.items():
        found = value.tensor() if isinstance(value, Array) else value
        if isinstance(found, Tensor):
            tensors[key if isinstance(key, str) else quoted(key)] = found
    if tensors:
        yield path, tensors
    if len(path) < _DEEPEST:
        for key, value in tree.items():
            if isinstance(value, Mapping | nn.Module):
                yield from _tables(value, (*path, str(key) if isinstance(key, str) else quoted(key)), seen)


def _networks(path: tuple[str, ...], table: State) -> Iterator[Network]:
    """The networks of one table: each prefix under which convolutions of blocks are named as some layout names them."""
    names = [name for name in table if not _is_bookkeeping(name)]
    patterns = block_patterns()
    prefixes: Counter[str] = Counter()
    for name in names:
        if len(name) <= _LONGEST_NAME and name.endswith(".weight"):
            prefixes.update({found["prefix"] for p in patterns if (found := p.fullmatch(name))})
    if len(prefixes) > _MOST_NETWORKS:
        raise WeightsError(f"it has names of over {_MOST_NETWORKS} networks")
    # Weights without any block are looked at as a whole: without `strict` a head may be all that is wanted.
    for prefix in prefixes or [""]:
        tensors = {name.removeprefix(prefix): table[name] for name in names if name.startswith(prefix)}
        try:
            layout = recognise(tensors)
        except WeightsError:
            continue
        beside = [name for name in names if not any(name.startswith(p) for p in {prefix, *prefixes})]
        tensors |= (head := _head_beside(prefix, table, layout, tensors))[0]
        beside = [name for name in beside if name not in head[1]]
        yield Network(".".join([*path, *([prefix.rstrip(".")] if prefix else [])]), layout, tensors, tuple(beside))


def _is_bookkeeping(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS or name.partition(".")[0] in _LOSSES


def _head_beside(prefix: str, table: State, layout: str, tensors: State) -> tuple[State, set[str]]:
    """A classifier that stands beside a backbone with a prefix of its own, as mmpretrain's, under the layout's name."""
    ours = {name: to_theirs(f"fc.{name}", LAYOUTS[layout]) for name in ("weight", "bias")}
    if not prefix or ours["weight"] in tensors:
        return {}, set()
    above = prefix[: prefix.rstrip(".").rfind(".") + 1]
    for head in _HEADS:
        weight, bias = f"{above}{head}.weight", f"{above}{head}.bias"
        if weight in table and bias in table and table[weight].ndim == 2:
            return {ours["weight"]: table[weight], ours["bias"]: table[bias]}, {weight, bias}
    return {}, set()


def _without_twins(networks: list[Network]) -> list[Network]:
    """Each network once: some files list the same tensors under two names."""
    found: dict[tuple[object, ...], Network] = {}
    for network in networks:
        tensor = next(iter(network.tensors.values()))
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta
        key: tuple[object, ...] = (network.name,)
        if plain and tensor.data_ptr():
            key = (tensor.data_ptr(), tensor.shape, len(network.tensors))
        found.setdefault(key, network)
    return list(found.values())
