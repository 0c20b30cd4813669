"""Files that would take the machine down, or lie about their sizes: one sentence, soon, and none of their code."""

import argparse
import collections
import io
import json
import pickle
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from residuum import ResNetConfig, WeightsError, create, load, load_weights
from residuum.weights import pickles
from residuum.weights.converting import convert, inspect
from residuum.weights.pickles import named_in

CONFIG = ResNetConfig(block="basic", depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=5)


def refused(path, says):
    """What is said of a file by everything that reads weights."""
    model = create(CONFIG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for run in (
        lambda: load(path), lambda: load_weights(model, path), lambda: load_weights(model, path, strict=False),
        lambda: inspect(path), lambda: convert(path, path.parent / "out.safetensors", "residuum"),
    ):  # fmt: skip
        start = time.process_time()
        with pytest.raises(WeightsError, match=says) as caught:
            run()
        assert time.process_time() - start < 5
        assert len(str(caught.value)) <= 500
        assert str(caught.value).isprintable()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def archive(path, program, packed=zipfile.ZIP_STORED, **others):
    with zipfile.ZipFile(path, "w", packed) as file:
        file.writestr("x/data.pkl", program)
        file.writestr("x/version", b"3\n")
        for name, content in others.items():
            file.writestr(f"x/{name}", content)


NESTED = b"\x80\x02)" + b"q\x00h\x00\x86" * 60  # each pair holds the one before twice


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"\x80\x02cbuiltins\nbytearray\nJ\x00\xe4\x0bT\x85R.", "would run code"),  # 1.4 GB of zeros
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.", "would run code"),
        (b"\x80\x02}" + NESTED[2:] + b"Ns.", "nests deeper"),  # a key whose hash takes 2^60 steps
        (b"\x80\x02" + b"]" * 500 + b"a" * 499 + b".", "nests deeper"),
        (b"\x80\x02" + b"]0" * 6_000 + b"N.", "more parts"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "damaged"),  # the two-thousand-millionth place of a memo
        (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
        (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.", "sparse|would run code"),
    ],
    ids=["bytearray", "system", "hash", "depth", "count", "memo", "text", "sparse"],
)
@pytest.mark.parametrize("inside", [True, False], ids=["archive", "plain"])
def test_pickles_are_looked_through_before_they_are_read(tmp_path, monkeypatch, program, says, inside):
    monkeypatch.setattr(pickles, "MOST_OPERATIONS", 10_000)
    path = tmp_path / "x.pt"
    archive(path, program) if inside else path.write_bytes(program)
    refused(path, says)


def test_an_archive_that_unfolds_is_refused(tmp_path):
    archive(tmp_path / "x.pt", b"\x80\x02}.", zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**8)})
    refused(tmp_path / "x.pt", "unfolds to many times its size")


def test_a_view_of_one_number_that_unfolds_to_hundreds_of_gigabytes_is_refused(tmp_path):
    state = create(CONFIG).state_dict() | {"layer1.0.conv1.weight": torch.zeros(1).expand(300_000, 300_000)}
    torch.save(state, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "unfold to")


@pytest.mark.parametrize(
    "config",
    [
        {"depths": [1000] * 100_000}, {"widths": [2**20, 2**20], "stem_width": 2**20}, {"depths": [[1]]},
        {"width": 64.0}, {"depths": 3}, {"depths": ["a"]}, {"widths": [10**400, 8]}, {"block": {"a": 1}},
        {"num_classes": 2**20},
    ],
)  # fmt: skip
def test_absurd_configs_are_refused_before_anything_is_built(tmp_path, config):
    noted = json.dumps({"config": CONFIG.to_dict() | config})
    save_file(create(CONFIG).state_dict(), tmp_path / "x.safetensors", {"residuum": noted})
    refused(tmp_path / "x.safetensors", "damaged|does not hold the network|convolutions")


@pytest.mark.parametrize("noted", ["[" * 10**5, '{"config": ' + "9" * 5000 + "}", "x" * 10**7])
def test_metadata_without_end_is_refused(tmp_path, noted):
    save_file(create(CONFIG).state_dict(), tmp_path / "x.safetensors", {"residuum": noted})
    refused(tmp_path / "x.safetensors", "metadata of .* is damaged")


@pytest.mark.slow
def test_names_of_thousands_of_networks_are_refused(tmp_path):
    save_file({f"n{i}.layer1.0.conv1.weight": torch.zeros(0) for i in range(20_000)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "over 64 networks")


def test_numbers_without_end_in_names_are_no_numbers(tmp_path):
    state = create(CONFIG).state_dict()
    state[f"layer{'9' * 5000}.0.conv1.weight"] = torch.zeros(1)
    state[f"layer1.{'٣' * 10}.conv1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="unexpected"):
        load_weights(create(CONFIG), tmp_path / "x.pt")
    assert len(load_weights(create(CONFIG), tmp_path / "x.pt", strict=False).unexpected) == 2


@pytest.mark.parametrize("shape", [(), (8,), (8, 3), (8, 3, 7), (0, 3, 7, 7), (8, 0, 7, 7), (1,) * 20])
@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"])
def test_weights_of_wrong_dimensions_are_refused(tmp_path, name, shape):
    torch.save(create(CONFIG).state_dict() | {name: torch.zeros(shape)}, tmp_path / "x.pt")
    for run in (load, lambda path: load_weights(create(CONFIG), path)):
        with pytest.raises(WeightsError):
            run(tmp_path / "x.pt")
    try:
        assert "this is no whole network" in inspect(tmp_path / "x.pt").notes[0]
    except WeightsError as error:
        assert "shapes" in str(error) or "no config fits" in str(error)
    load_weights(create(CONFIG), tmp_path / "x.pt", strict=False)


def test_a_header_that_is_longer_than_any_network_needs_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**26) + b"{" + b" " * 2**10)
    refused(tmp_path / "x", "header is longer")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.mkdir(), lambda p: p.write_bytes(b""), lambda p: p.symlink_to("nowhere"),
        lambda p: p.write_text("hello"),
        lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)),
    ],
    ids=["folder", "empty", "dead link", "text", "HDF5", "half a zip"],
)  # fmt: skip
def test_what_is_no_weights_file_gets_one_sentence(tmp_path, make):
    make(tmp_path / "x")
    refused(tmp_path / "x", "cannot be read|no weights")


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "\udcff", "~nobody/x", "", "torchvision:", "hf:", "x:y"])
def test_paths_that_cannot_be_get_one_sentence(path):
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_the_scan_of_a_pickle_knows_every_name_that_its_reader_would_ask_for():
    values = [argparse.Namespace(a=1), collections.OrderedDict(b=2), {1}, b"x" * 300, [1.5] * 3, {"a": ("b", (2,))}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        asked = set()

        class Reader(pickle.Unpickler):
            def find_class(self, module, name, asked=asked):
                asked.add(f"{module}.{name}")
                return super().find_class(module, name)

        content = pickle.dumps(values, protocol)
        Reader(io.BytesIO(content)).load()
        named = named_in(io.BytesIO(content))
        assert asked <= named
