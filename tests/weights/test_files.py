"""Weights files: whole networks from one file, and one clear sentence for a file that is none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from residuum import ResNetConfig, create, save_pretrained
from residuum.errors import WeightsError
from residuum.weights.converting import convert, inspect
from residuum.weights.files import load, read_metadata, save
from residuum.weights.reading import KEY

CONFIG = ResNetConfig(depths=(1, 1), widths=(8, 16), stem_width=8, antialias="blur", num_classes=3)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = create(CONFIG)
    save(model, tmp_path / "net.safetensors", classes=["a", "b", "c"])
    return model, tmp_path / "net.safetensors"


def test_a_network_comes_back_from_the_file_alone(saved):
    model, path = saved
    again = load(path)
    x = torch.randn(2, 3, 32, 32)
    assert again.config == CONFIG
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert read_metadata(path)["classes"] == ["a", "b", "c"]


def test_equal_networks_are_equal_files(saved, tmp_path):
    model, path = saved
    save(model, tmp_path / "twin.safetensors", classes=["a", "b", "c"])
    assert (tmp_path / "twin.safetensors").read_bytes() == path.read_bytes()


def test_channels_last_and_bf16_weights_come_back(tmp_path):
    model = create(CONFIG).to(torch.bfloat16, memory_format=torch.channels_last)
    save(model, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors")
    assert torch.equal(again.conv1.weight, model.conv1.weight.float())


def test_damaged_files_are_refused(saved, tmp_path):
    _, path = saved
    content = path.read_bytes()
    for number, damaged in enumerate((b"", b"junk", content[: len(content) // 2], content[:6], content + b"more")):
        bad = tmp_path / f"{number}.safetensors"
        bad.write_bytes(damaged)
        with pytest.raises(WeightsError, match=bad.name) as caught:
            load(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="there is no weights file"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "noted", ["[1]", "{", '{"config": 3}', '{"config": {"widht": 1}}', '{"config": {"width": -1}}']
)
def test_a_file_without_a_readable_config_is_refused(tmp_path, noted):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, {KEY: noted})
    with pytest.raises(WeightsError, match="the metadata of .* is damaged"):
        load(path)


def test_a_file_whose_tensors_are_another_networks_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(create(CONFIG, num_classes=9).state_dict(), path, {KEY: json.dumps({"config": CONFIG.to_dict()})})
    with pytest.raises(WeightsError, match="does not hold the network"):
        load(path)


def test_writing_where_it_cannot_be_done_leaves_what_was_there(saved, tmp_path, monkeypatch):
    model, path = saved
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="cannot write"):
        save(model, tmp_path / "no" / "folder.safetensors")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(WeightsError, match="No space left"):
        save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_is_no_number_is_neither_written_nor_loaded_but_inspected(saved, tmp_path, value):
    model, path = saved
    model = model.double()
    with torch.no_grad():
        model.fc.bias[1] = value
    with pytest.raises(WeightsError, match="nothing was saved: the network holds NaN or infinity in 'fc.bias'"):
        save(model, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="nothing was saved: the network holds NaN or infinity in 'fc.bias'"):
        save_pretrained(model, tmp_path / "hub")
    assert list(tmp_path.iterdir()) == [path]
    noted = json.dumps({"config": CONFIG.to_dict()})
    save_file(model.state_dict(), path, {KEY: noted})
    with pytest.raises(WeightsError, match=r"net.safetensors holds NaN or infinity in 'fc.bias'"):
        load(path)
    assert inspect(path).not_finite == (() if value == 1e300 else ("fc.bias",))


def test_layers_that_share_their_weights_are_written_with_a_copy_each(tmp_path):
    torch.manual_seed(0)
    model = create(CONFIG, depths=(2, 1), block="basic").eval()
    model.layer1[1].conv1.weight = model.layer1[1].conv2.weight
    x = torch.randn(1, 3, 32, 32)
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    save(model, tmp_path / "net.safetensors")
    save_pretrained(model, tmp_path / "hub")
    plain = create(CONFIG, depths=(2, 1), block="basic", antialias="none").eval()
    plain.load_state_dict(model.state_dict())
    plain.layer1[1].conv1.weight = plain.layer1[1].conv2.weight
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    convert(tmp_path / "tied.pt", tmp_path / "ours.safetensors", "residuum")
    convert(tmp_path / "tied.pt", tmp_path / "theirs.safetensors", "timm")
    convert(tmp_path / "plain.pt", tmp_path / "hf", "hf")
    for written in ("net.safetensors", "hub"):
        assert torch.equal(load(tmp_path / written)(x), model(x))
    for written in ("ours.safetensors", "theirs.safetensors", "hf"):
        assert torch.equal(load(tmp_path / written)(x), plain(x))
