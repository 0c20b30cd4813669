"""Weights files made from a seed: of every layout, in every container, broken, hostile or merely unusual."""

import argparse
import collections
import json
import os
import pickle
import random
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

State = dict[str, Any]


@dataclass
class Case:
    """A file, how it came about, and whether it still holds the weights as they were."""

    path: Path
    how: str
    same: bool = False


# -- networks and their layouts ----------------------------------------------------------------------------------------


def bases() -> dict[str, tuple[Any, dict[str, Any]]]:
    """For each layout the config of a tiny network and its weights under that layout's names."""
    import torch

    from residuum import ResNetConfig, create
    from residuum.weights.layouts import LAYOUTS, to_theirs
    from tests.networks import scramble

    torch.manual_seed(0)
    basic = ResNetConfig(block="basic", depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=3)
    bottleneck = basic.replace(block="bottleneck", widths=(4, 8))
    configs = {
        "torchvision": basic, "hf": bottleneck, "detectron2": bottleneck, "children": basic,
        "timm": basic.replace(attention="se", stem="deep", downsample="avg"), "timm-v2": basic.replace(preact=True),
        "cifar": basic.replace(stem="conv3", stem_pool="none"),
    }  # fmt: skip
    found = {}
    for layout, config in configs.items():
        model = create(config)
        scramble(model)
        state = {to_theirs(name, LAYOUTS[layout]): v.detach().clone() for name, v in model.state_dict().items()}
        found[layout] = (config, state)
    return found


# -- mutations of a state dict -----------------------------------------------------------------------------------------


def _pick(rng: random.Random, state: State) -> str:
    return rng.choice(sorted(state))


def drop(rng: random.Random, state: State) -> None:
    for _ in range(rng.choice((1, 1, 2, 5))):
        if state:
            del state[_pick(rng, state)]


def swap(rng: random.Random, state: State) -> None:
    a, b = _pick(rng, state), _pick(rng, state)
    state[a], state[b] = state[b], state[a]


def retype(rng: random.Random, state: State) -> None:
    import torch

    name = _pick(rng, state)
    kinds = (torch.int8, torch.uint8, torch.int64, torch.bool, torch.float64, torch.float16, torch.bfloat16,
             torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.complex32)  # fmt: skip
    kind = rng.choice(kinds)
    for one in state if rng.random() < 0.3 else [name]:
        state[one] = state[one].to(kind)


def reshape(rng: random.Random, state: State) -> None:
    import torch

    name = _pick(rng, state)
    value = state[name]
    state[name] = rng.choice((
        value.flatten, lambda: value[None], lambda: value.reshape(*value.shape, 1, 1), lambda: value[:0],
        lambda: value.reshape(-1)[0] if value.numel() else value,
        lambda: value.transpose(0, -1) if value.ndim else value,
        lambda: torch.zeros(0), lambda: torch.zeros(0, 3, 7, 7), lambda: torch.zeros(64, 0, 7, 7),
        lambda: torch.zeros((1,) * 60), lambda: value.repeat(2, *[1] * (value.ndim - 1)) if value.ndim else value,
        lambda: torch.zeros(2**40, 0, 2**20),
    ))()  # fmt: skip


def odd_tensor(rng: random.Random, state: State) -> None:
    """Layouts and views that are no dense tensor."""
    import torch

    name = _pick(rng, state)
    value = state[name].float()
    huge = rng.choice((10**3, 10**4, 3 * 10**5))
    matrix = value.reshape(-1, 1)
    makers: list[Callable[[], Any]] = [
        value.to_sparse,
        matrix.to_sparse_csr,
        lambda: torch.nested.nested_tensor([value.flatten(), value.flatten()]),
        lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(
            value, torch.ones(value.shape[0]), torch.zeros(value.shape[0]), 0, torch.qint8
        ),
        lambda: value.to(torch.complex64).conj(),
        lambda: torch.view_as_real(value.to(torch.complex64).conj())[..., 1],
        lambda: torch.zeros(1).expand(huge, huge),
        lambda: torch.zeros(1).expand(value.shape),
        lambda: torch.zeros(1).expand(2**20, 3, 7, 7),
        lambda: value.flatten().as_strided((huge, huge), (0, 0)),
        lambda: value.to("meta"),
        lambda: torch.nn.Parameter(value, requires_grad=True),
        lambda: torch.zeros(3, dtype=torch.complex128),
    ]
    try:
        made = rng.choice(makers)()
    except (RuntimeError, IndexError):  # not of this shape
        made = value.to_sparse()
    for one in list(state) if rng.random() < 0.1 else [name]:
        state[one] = made


def bad_numbers(rng: random.Random, state: State) -> None:
    import torch

    floating = [n for n in sorted(state) if state[n].is_floating_point() and state[n].numel()]
    if floating:
        name = rng.choice(floating)
        value = rng.choice((float("nan"), float("inf"), -float("inf"), 1e300))
        wide = state[name].double() if value == 1e300 else state[name].clone()
        wide.reshape(-1)[rng.randrange(wide.numel())] = value
        state[name] = wide
        assert isinstance(wide, torch.Tensor)


NUMBERS = ("9" * 5000, "0" * 400, "٣", "-1", "99999", "007", "1e3", "²", "")
ODD_NAMES = (
    "", ".", "..", "weight", ".weight", "a" * 100_000, "\x1b[31mred\x07", "layer1", "[bold]x[/bold]", "\u202ename",
    "layer1.0.conv1.weight.weight", "conv1..weight", "layer1.0." * 2000 + "conv1.weight", "\ud800", "\x00",
)  # fmt: skip


def mangle_names(rng: random.Random, state: State) -> None:
    for _ in range(rng.choice((1, 2, 10))):
        name = _pick(rng, state)
        value = state.pop(name)
        number = rng.choice(NUMBERS)
        digits = [i for i, c in enumerate(name) if c.isdigit()]
        place = rng.choice(digits) if digits else 0
        state[rng.choice((
            name[:place] + number + name[place + 1 :], rng.choice(ODD_NAMES), name.upper(),
            name + rng.choice(ODD_NAMES),
            rng.choice(ODD_NAMES) + name, name.replace(".", "_"), name[::-1], name.replace("layer", "stage"),
            name.removesuffix(".weight") + ".weight_orig",
        ))] = value  # fmt: skip


def add_tensors(rng: random.Random, state: State) -> None:
    import torch

    count = rng.choice((1, 3, 50, 1000))
    for i in range(count):
        name = rng.choice((
            f"extra.{i}.weight", f"layer1.{i}.conv1.weight", f"layer{i}.0.conv1.weight", f"fc.{i}.weight",
            f"stages.{i}.blocks.0.conv1.weight", f"backbone.layer1.{i}.conv1.weight", f"{i}",
        ))  # fmt: skip
        state[name] = torch.zeros(rng.choice((0, 1, 8)))


def second_network(rng: random.Random, state: State) -> None:
    first, second = rng.sample(("encoder_q.", "encoder_k.", "model.", "backbone.", "ema.", "1.", "a.b.c."), 2)
    copied = dict(state)
    state.clear()
    state.update({first + name: value for name, value in copied.items()})
    state.update({second + name: value for name, value in copied.items() if rng.random() < 0.9})


def fill_out(rng: random.Random, state: State) -> None:
    """Tensors of absurd sizes that no bytes stand behind."""
    import torch

    for name in list(state):
        if rng.random() < 0.5:
            state[name] = torch.zeros(1).expand([n * rng.choice((1, 1000)) for n in state[name].shape] or [1])


STATE_MUTATIONS = (
    drop, swap, retype, reshape, odd_tensor, bad_numbers, mangle_names, add_tensors, second_network, fill_out,
)  # fmt: skip

# What changes nothing: each of these files holds the network as it was.
PREFIXES = ("module.", "encoder.", "1.", "net.backbone.", "online.net.", "_orig_mod.module.")


def wrap(rng: random.Random, state: State) -> None:
    prefix = rng.choice(PREFIXES)
    named = {prefix + name: value for name, value in state.items()}
    state.clear()
    state.update(named)


def bookkeeping(rng: random.Random, state: State) -> None:
    import torch

    state["n_averaged"] = torch.tensor(3)
    state["total_ops"] = torch.tensor([1.0], dtype=torch.float64)
    for name in list(state)[: rng.randrange(5)]:
        state[name.rpartition(".")[0] + ".total_params"] = torch.zeros(1)


# -- containers --------------------------------------------------------------------------------------------------------


def _plain(state: State) -> State:
    """Tensors as they are stored one by one; `ValueError` where that would be gigabytes."""
    if sum(value.numel() for value in state.values()) > 10**7:
        raise ValueError("too large to write")
    return {name: value.contiguous().clone() for name, value in state.items()}


def safetensors(rng: random.Random, state: State, path: Path, config: Any) -> None:
    from safetensors.torch import save_file

    save_file(_plain(state), path)


def ours(rng: random.Random, state: State, path: Path, config: Any) -> None:
    from safetensors.torch import save_file

    save_file(_plain(state), path, {"residuum": json.dumps({"config": config.to_dict()})})


def torch_zip(rng: random.Random, state: State, path: Path, config: Any) -> None:
    import torch

    torch.save(nested(rng, state), path)


def torch_legacy(rng: random.Random, state: State, path: Path, config: Any) -> None:
    import torch

    torch.save(nested(rng, state), path, _use_new_zipfile_serialization=False)


def numpy_pickle(rng: random.Random, state: State, path: Path, config: Any) -> None:
    import torch

    arrays = {name: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for name, v in _plain(state).items()}
    path.write_bytes(pickle.dumps(rng.choice(({"model": arrays}, arrays)), protocol=rng.choice((2, 3, 4, 5))))


def nested(rng: random.Random, state: State) -> Any:
    """What training scripts put around a state dict."""
    import numpy
    import torch

    choice = rng.randrange(6)
    if choice == 0:
        return dict(state)
    if choice == 1:
        return {"state_dict": state, "epoch": 3, "best_acc1": torch.tensor(70.0)}
    if choice == 2:
        return {"model": state, "args": argparse.Namespace(lr=0.1, data="x"), "loss": numpy.float64(0.5)}
    if choice == 3:
        return {"model_state_dict": collections.OrderedDict(state), "history": numpy.arange(5.0), "names": ["a"] * 9}
    if choice == 4:
        return {"net": {"inner": state}, "seen": {1, 2, 3}, "count": collections.Counter("abc")}
    parameter = torch.nn.Parameter(torch.zeros(3))
    return {"state_dict": state, "optimizer": torch.optim.Adam([parameter]).state_dict()}


CONTAINERS = (safetensors, ours, torch_zip, torch_legacy, numpy_pickle)
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".pkl", ".pth.tar", ".ckpt", "")


# -- mutations of bytes ------------------------------------------------------------------------------------------------


def flip(rng: random.Random, content: bytearray) -> None:
    front = min(len(content), rng.choice((64, 2000, len(content))))
    for _ in range(rng.choice((1, 1, 3, 100))):
        if front:
            content[rng.randrange(front)] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, content: bytearray) -> None:
    del content[rng.randrange(len(content) + 1) :]


def insert(rng: random.Random, content: bytearray) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))


def zero_out(rng: random.Random, content: bytearray) -> None:
    at = rng.randrange(len(content) + 1)
    length = min(rng.choice((1, 16, 4096)), len(content) - at)
    content[at : at + length] = bytes(length)


def twice(rng: random.Random, content: bytearray) -> None:
    content.extend(bytes(content[rng.randrange(len(content) + 1) :]))


def front(rng: random.Random, content: bytearray) -> None:
    content[:8] = rng.choice((
        struct.pack("<Q", 2**63), struct.pack("<Q", 0), struct.pack("<Q", 2**25), b"PK\x03\x04....",
        b"\x80\x05\x95....",
        struct.pack("<Q", len(content)), b"\x80\x02}q\x00.  ", b"\x89HDF\r\n\x1a\n",
    ))  # fmt: skip


BYTE_MUTATIONS = (flip, flip, truncate, insert, zero_out, twice, front)


# -- hand-made files ---------------------------------------------------------------------------------------------------


class Reduced:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def odd_metadata(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """A file of ours whose metadata says something else."""
    from safetensors.torch import save_file

    good = config.to_dict()
    deep = "[" * 50_000 + "]" * 50_000
    classes = (3, "abc", ["a"], [1, 2, 3], ["a", "b", None], {}, ["x" * 10**6] * 3)
    large = {"channels": 3, "image_size": [10**9, 10**9], "mean": [0] * 3, "std": [0] * 3, "crop": 1.0}
    preprocessing = (3, [], {}, {"channels": 3}, {"channels": "\x1b"}, large)
    texts: list[Callable[[], str]] = [
        lambda: rng.choice(("", "null", "3", "[]", "{}", '{"config": null}', '{"config": []}', "{", '"x"', "NaN")),
        lambda: deep, lambda: '{"config": ' + deep + "}", lambda: '{"config": {"depths": ' + "9" * 5000 + "}}",
        lambda: json.dumps({"config": good | {"depths": [1000] * rng.choice((2, 1000, 100_000))}}),
        lambda: json.dumps({"config": good | {"widths": [2**20] * 2, "stem_width": 2**20}}),
        lambda: json.dumps({"config": good | {"num_classes": 2**20, "widths": [2**20, 2**20]}}),
        lambda: json.dumps({"config": good | {"width": 64.0}}),
        lambda: json.dumps({"config": good | {"groups": 2**20}}),
        lambda: json.dumps({"config": good | {rng.choice(sorted(good)): rng.choice(ODD_VALUES)}}),
        lambda: json.dumps({"config": good | {rng.choice(sorted(good)): rng.choice(ODD_VALUES)}}),
        lambda: json.dumps({"config": good | {"x" * 100_000: 1}}),
        lambda: json.dumps({"config": good, "classes": rng.choice(classes)}),
        lambda: json.dumps({"config": good, "preprocessing": rng.choice(preprocessing)}),
        lambda: json.dumps({"config": good, "sha256": rng.choice((3, "x" * 10**6, None, []))}),
        lambda: json.dumps({"config": good, "extra": ["y"] * 10**6}),
    ]  # fmt: skip
    save_file(_plain(state), path, {"residuum": rng.choice(texts)()})


ODD_VALUES: tuple[Any, ...] = (
    None, -1, 0, 2**31, 2**64, 10**400, 1.5, float("nan"), float("inf"), "x", "", "\x1b[31m", [], [0], [-1], ["a"],
    [[1]], [2**31] * 2, {}, {"a": 1}, True, [1] * 10_000, "9" * 10_000,
)  # fmt: skip


def odd_header(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """safetensors whose header lies."""
    content = bytes(4096)
    entry = {"dtype": "F32", "shape": [8, 3, 7, 7], "data_offsets": [0, 4704]}
    none = {"dtype": "F32", "shape": rng.choice(([0], [64, 64, 3, 0])), "data_offsets": [0, 0]}
    kind = rng.choice(("BF16", "F8_E4M3", "F8_E8M0", "U64", "BOOL", "C64", "F6_E2M3"))
    headers: list[Callable[[], Any]] = [
        lambda: {"conv1.weight": entry}, lambda: {"conv1.weight": entry | {"data_offsets": [0, 2**62]}},
        lambda: {"conv1.weight": entry | {"shape": [2**40, 2**40]}}, lambda: {"conv1.weight": entry | {"dtype": "F4"}},
        lambda: {"conv1.weight": entry | {"shape": [-1]}}, lambda: {"conv1.weight": entry | {"shape": []}},
        lambda: {"conv1.weight": {"dtype": "F32", "shape": [0] * 1000, "data_offsets": [0, 0]}},
        lambda: {f"layer1.{i}.conv1.weight": none for i in range(20_000)},
        lambda: {f"layer{i}.0.conv{j}.weight": none for i in range(1, 3000) for j in (1, 2)},
        lambda: {"a" * 10**6: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        lambda: {"__metadata__": {"residuum": 3}}, lambda: {"__metadata__": []}, lambda: [], lambda: {},
        lambda: {"x": {"dtype": kind, "shape": [16], "data_offsets": [0, 16 * rng.choice((1, 2, 8))]}},
    ]  # fmt: skip
    text = json.dumps(rng.choice(headers)()).encode()
    if rng.random() < 0.1:
        text += b" " * rng.choice((10**6, 2**26))
    if rng.random() < 0.1:
        text = b"{" * 10**5
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def odd_objects(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """A torch file with objects of other kinds among the tensors, or tensors rebuilt from lies."""
    import torch
    from torch._utils import _rebuild_meta_tensor_no_storage, _rebuild_parameter, _rebuild_tensor_v2

    storage = torch.zeros(100).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    hooks: Any = collections.OrderedDict()
    a: Any = ()
    for _ in range(rng.choice((30, 90, 500))):
        a = (a, a)
    chain: Any = []
    for _ in range(rng.choice((50, 200, 900))):
        chain = [chain]
    name = _pick(rng, state)
    objects: list[Callable[[], Any]] = [
        lambda: Reduced(print, "this code came with the file"), lambda: Reduced(os.getcwd),
        lambda: Reduced(bytearray, 10**10), lambda: Reduced(torch.Tensor, 10**9),
        lambda: Reduced(torch.FloatTensor, 10**9),
        lambda: Reduced(_rebuild_tensor_v2, typed, 0, (10**5, 10**6), (0, 0), False, hooks),
        lambda: Reduced(_rebuild_tensor_v2, typed, -5, (10,), (1,), False, hooks),
        lambda: Reduced(_rebuild_tensor_v2, typed, 0, (1000,), (1,), False, hooks),
        lambda: Reduced(_rebuild_tensor_v2, typed, 0, (-1,), (1,), False, hooks),
        lambda: Reduced(_rebuild_tensor_v2, typed, 2**62, (1,), (2**62,), False, hooks),
        lambda: Reduced(_rebuild_tensor_v2, typed, "0", (1,), None, False, hooks),
        lambda: Reduced(_rebuild_parameter, 3, True, hooks),
        lambda: Reduced(_rebuild_meta_tensor_no_storage, torch.float32, (10**9, 10**9), (1, 1), False),
        lambda: a, lambda: chain, lambda: {"x": chain}, lambda: 10 ** rng.choice((10, 4000)),
        lambda: "x" * 10**6, lambda: b"y" * 10**6, lambda: [0] * 200_000, lambda: torch.device("cuda:7"),
        lambda: torch.nn.Linear(2, 2), lambda: slice(3), lambda: range(3), lambda: Path("x"), lambda: complex(1, 2),
        lambda: torch.Size([1, 2]), lambda: torch.float32, lambda: argparse.Namespace(**{name: 1}),
        lambda: {1: {2: {3: {4: {5: {6: {7: {"conv1.weight": torch.zeros(2)}}}}}}}},
    ]  # fmt: skip
    made = rng.choice(objects)()
    if rng.random() < 0.5:
        state = state | {name: made}
        content: Any = state
    else:
        content = {"state_dict": state, "other": made}
    sys.setrecursionlimit(10_000)
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)


def odd_arrays(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """A pickle of numpy arrays of other kinds, or an array that says another shape than it has."""
    import numpy
    from numpy._core.multiarray import _reconstruct

    class Lying:
        def __init__(self, *said: Any) -> None:
            self.said = said

        def __reduce__(self) -> Any:
            return _reconstruct, (numpy.ndarray, (0,), b"b"), self.said

    f4 = numpy.dtype("f4")
    arrays: list[Callable[[], Any]] = [
        lambda: numpy.array([None, "x", 3], dtype=object), lambda: numpy.zeros(3, dtype="M8[s]"),
        lambda: numpy.zeros(3, dtype=[("a", "f4")]), lambda: numpy.array("text"), lambda: numpy.zeros((2, 0, 3)),
        lambda: numpy.zeros(3, dtype=">f4"), lambda: numpy.asfortranarray(numpy.ones((3, 4), "f4")),
        lambda: numpy.float32(3),
        lambda: numpy.zeros(3, dtype="g"), lambda: Lying(1, (10**9, 10**9), f4, False, b"xxxx"),
        lambda: Lying(1, (-1,), f4, False, b"xxxx"), lambda: Lying(1, (1,), f4, False, b"xx"),
        lambda: Lying(1, (0, 2**60), f4, False, b""), lambda: Lying(3, None), Lying,
        lambda: Lying(1, (1,), numpy.dtype(object), False, b"12345678"), lambda: Reduced(print, "code"),
        lambda: Reduced(_reconstruct, numpy.ndarray, (10**12,), b"d"), lambda: numpy.zeros((1,) * 40, "f4"),
        lambda: numpy.matrix([[1]]), lambda: numpy.ma.masked_array([1]), lambda: Reduced(bytearray, 10**10),
    ]  # fmt: skip
    content: dict[str, Any] = {name: value.float().numpy() for name, value in state.items()}
    content[_pick(rng, state)] = rng.choice(arrays)()
    path.write_bytes(pickle.dumps({"model": content}, protocol=rng.choice((0, 1, 2, 3, 4, 5))))


def odd_pickle(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """Bytes that are a pickle, and a bomb."""
    nested_tuples = b"\x80\x02)" + b"q\x00h\x00\x86" * rng.choice((60, 5000))
    nested_key = b"\x80\x02}" + nested_tuples[2:] + b"Ns."  # whose hash would never be known
    programs = (
        nested_tuples + b".", nested_key, b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x02" + b"]" * 500_000 + b".",
        b"\x80\x02" + b"(" * 10**6 + b"l.", b"\x80\x02]" + b"]a" * 100_000 + b".", b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x02cos\nsystem\nU\x04echo\x85R.",
        b"cos\nsystem\n(S'echo'\ntR.", b"\x80\x02" + b"}" * 10 + b"s" * 10 + b".", b"(dp1\nS'model'\np2\nI1\ns.",
        b"\x80\x02I" + b"9" * 100_000 + b"\n.", b"\x80\x02L" + b"9" * 10**6 + b"L\n.", b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.", b"}.", b"N.", b"].", b"\x80", b"\x80\x02", b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        b"\x80\x02h\x05.", b"\x80\x02X\xff\xff\xff\x7fab.", b"(i__main__\nx\n.",
        b"\x80\x02" + b"N0" * 500_001 + b"N.",
    )  # fmt: skip
    program = rng.choice(programs)
    if rng.random() < 0.5:
        path.write_bytes(program)
    else:  # inside torch's archive
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x/data.pkl", program)
            file.writestr("x/version", b"3\n")
            file.writestr("x/byteorder", b"little")


def odd_archive(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """A torch file taken apart and put together otherwise."""
    import torch

    torch.save(state, path)
    with zipfile.ZipFile(path) as file:
        parts = [(e.filename, file.read(e)) for e in file.infolist()]
    pick = rng.randrange(len(parts))
    name, content = parts[pick]
    choice = rng.randrange(10)
    if choice == 0:
        del parts[pick]
    elif choice == 1:
        parts[pick] = (name, content[: len(content) // 2])
    elif choice == 2:
        parts.append((name, content))
    elif choice == 3:
        parts.append(("x/data/999", bytes(2**26)))  # zeros, which deflate to nothing
    elif choice == 4:
        parts = [(f"{i}" * rng.choice((1, 50)), b"") for i in range(20_000)] + parts
    elif choice == 5:
        parts = [(name.replace("/data/", "/../data/"), content) for name, content in parts]
    elif choice == 6:
        parts = [(name, content) for name, content in parts if not name.endswith("data.pkl")]
    elif choice == 7:
        parts = [
            (name, rng.randbytes(10) if "byteorder" in name or "version" in name else content)
            for name, content in parts
        ]
    elif choice == 8:
        records = [i for i, (name, _) in enumerate(parts) if "/data/" in name]
        a, b = rng.choice(records), rng.choice(records)
        parts[a], parts[b] = (parts[a][0], parts[b][1]), (parts[b][0], parts[a][1])
    else:
        parts.append((f"{name.partition('/')[0]}/code/x.py", b"x"))
    packed = zipfile.ZIP_DEFLATED if choice == 3 or rng.random() < 0.2 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", packed) as file:
        for name, content in parts:
            file.writestr(name, content)


def beside(rng: random.Random, state: State, path: Path, config: Any) -> None:
    """Weights with a config.json of another library that says odd things."""
    from safetensors.torch import save_file

    save_file(_plain(state), path)
    given = {name: rng.choice(ODD_VALUES) for name in ("input_size", "mean", "crop_pct", "tag")} | {"std": [1, 1, 1]}
    values = rng.choice((
        {"model_type": "resnet", "hidden_act": rng.choice(ODD_VALUES), "id2label": rng.choice(ODD_VALUES)},
        {"model_type": "resnet", "downsample_in_bottleneck": True, "downsample_in_first_stage": rng.choice(ODD_VALUES)},
        {"architecture": rng.choice(ODD_VALUES), "pretrained_cfg": rng.choice(ODD_VALUES)},
        {"architecture": "resnetblur50", "pretrained_cfg": given, "num_classes": 1000},
        {"label_names": rng.choice(ODD_VALUES), "pretrained_cfg": {"label_names": ["a", "b", "c"]}}, [], 3,
    ))  # fmt: skip
    text = rng.choice((json.dumps(values), json.dumps(values), "{", "[" * 10**5, "\ud800", '{"a": ' + "9" * 5000 + "}"))
    (path.parent / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    said = {"size": rng.choice(ODD_VALUES), "image_mean": rng.choice(ODD_VALUES), "image_std": [1, 1, 1]}
    (path.parent / "preprocessor_config.json").write_text(json.dumps(said))


HAND_MADE = (odd_metadata, odd_header, odd_objects, odd_arrays, odd_pickle, odd_archive, beside)


# -- a case from its number --------------------------------------------------------------------------------------------


def make(seed: int, index: int, folder: Path, based: dict[str, tuple[Any, State]]) -> tuple[Case, str]:
    """The file of a number, and the layout of the network that it was made from."""
    rng = random.Random(f"{seed}:{index}")
    layout = rng.choice(sorted(based))
    config, good = based[layout]
    state = dict(good)
    path = folder / f"{index}{rng.choice(ENDINGS)}"
    kind = rng.random()
    if kind < 0.1:
        harmless = rng.choice(((), (wrap,), (bookkeeping,), (wrap, bookkeeping)))
        containers = [torch_zip, torch_legacy, numpy_pickle, safetensors]
        container = rng.choice(containers)
        for step in harmless:
            step(rng, state)
        container(rng, state, path, config)
        return Case(path, f"{layout} {container.__name__} {[s.__name__ for s in harmless]}", same=True), layout
    if kind < 0.5:
        steps = [rng.choice(STATE_MUTATIONS) for _ in range(rng.choice((1, 1, 2, 3)))]
        for step in steps:
            if state and all(value.numel() < 10**7 for value in state.values()):
                try:
                    step(rng, state)
                except (RuntimeError, IndexError, TypeError, AttributeError, NotImplementedError, ValueError):
                    continue  # of a tensor that is already odd
        container = rng.choice(CONTAINERS)
        how = f"{layout} {container.__name__} {[s.__name__ for s in steps]}"
        try:
            container(rng, state, path, config)
        except Exception:  # what a container cannot hold, torch's pickles can
            path.unlink(missing_ok=True)
            try:
                torch_zip(rng, state, path, config)
            except Exception:
                torch_zip(rng, dict(good), path, config)
        return Case(path, how), layout
    if kind < 0.75:
        container = rng.choice(CONTAINERS)
        container(rng, state, path, config)
        content = bytearray(path.read_bytes())
        steps = [rng.choice(BYTE_MUTATIONS) for _ in range(rng.choice((1, 1, 2)))]
        for step in steps:
            step(rng, content)
        path.write_bytes(content)
        return Case(path, f"{layout} {container.__name__} {[s.__name__ for s in steps]}"), layout
    maker = rng.choice(HAND_MADE)
    maker(rng, state, path, config)
    return Case(path, f"{layout} {maker.__name__}"), layout
