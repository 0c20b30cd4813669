"""Weights files: whole networks from one file, and one clear sentence for a file that is none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from residuum import ResNetConfig, create
from residuum.errors import WeightsError
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
