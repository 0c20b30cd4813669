"""Networks as torch.export programs: proved to answer as the network does, or not given out."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from tests.inference.surgeries import Odd
from tests.networks import relative, scramble
from torch import nn

import residuum.export.program
from residuum import Preprocessing, create
from residuum.errors import ConfigError, DeviceError, ExportError
from residuum.export import export
from residuum.export.proof import TOLERANCE, prove

SIZE = (32, 40)
VARIANTS = [
    {},
    {"attention": "se", "norm": "group", "antialias": "blur", "activation": "silu"},
    {"preact": True, "weight_standardization": True, "attention": "eca"},
    {"block": "basic", "downsample": "pad", "widths": (16, 24), "stem": "conv3", "num_classes": 0, "in_channels": 1},
    {"stem": "deep", "stochastic_depth": 0.5, "dropout": 0.5},
]


def network(**changes):
    torch.manual_seed(0)
    small = {"depths": (2, 1), "widths": (8, 16), "stem_width": 16, "num_classes": 5} | changes
    model = create("resnet50", **small)
    scramble(model)
    return model.eval()


def answers(model, images):
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())) or "plain")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_program_takes_any_batch_and_answers_as_the_network(variant, precision):
    model = network(**variant)
    run = export(model, image_size=SIZE, precision=precision).module()
    for count in (1, 2, 7):
        images = torch.randn(count, model.config.in_channels, *SIZE)
        assert relative(run(images), answers(model, images)) < TOLERANCE[precision]


@pytest.mark.slow
def test_a_written_program_is_run_by_torch_alone_and_says_what_it_is(tmp_path):
    model, images = network(), torch.randn(3, 3, *SIZE)
    model.classes, model.preprocessing = tuple("abcde"), Preprocessing(3, SIZE, (0.5,) * 3, (0.2,) * 3, 0.9)
    path = tmp_path / "net.pt2"
    export(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    torch.save(images, tmp_path / "images.pt")
    code = f"""
import sys, torch
said = {{"residuum.json": ""}}
program = torch.export.load({str(path)!r}, extra_files=said)
torch.save(program.module()(torch.load({str(tmp_path / "images.pt")!r})), {str(tmp_path / "out.pt")!r})
print(said["residuum.json"])
assert "residuum" not in sys.modules
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert relative(torch.load(tmp_path / "out.pt"), answers(model, images)) < 1e-5
    note = json.loads(said)
    assert note["classes"] == list("abcde")
    assert Preprocessing.from_dict(note["preprocessing"]) == model.preprocessing
    assert note["config"]["depths"] == [2, 1]
    assert (note["precision"], note["image_size"]) == ("fp32", [32, 40])


def test_a_network_in_training_is_exported_as_in_evaluation_and_left_as_it_was():
    model = network(dropout=0.9, stochastic_depth=0.9).train()
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        program = export(model, image_size=SIZE)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    images = torch.randn(2, 3, *SIZE)
    assert relative(program.module()(images), answers(model.eval(), images)) < 1e-5


def test_layers_masks_and_parametrisations_of_a_user_go_along():
    model = network()
    model.layer1[0].bn2 = Odd()
    nn.utils.prune.l1_unstructured(model.layer1[1].conv2, "weight", 0.5)
    nn.utils.parametrizations.weight_norm(model.fc)
    model.eval()
    images = torch.randn(2, 3, *SIZE)
    assert relative(export(model, image_size=SIZE).module()(images), answers(model, images)) < 1e-5


class Drawing(nn.Module):
    """A layer that cannot be captured: what it does depends on the values."""

    def forward(self, x):
        return x if x.sum().item() > 0 else -x


def with_layer(layer):
    model = network()
    model.layer1[0].bn2 = layer
    return model.eval()


def with_hook(name):
    model = network()
    model.get_submodule(name).register_forward_hook(lambda module, given, out: None)
    return model


REFUSED = [
    (ConfigError, "image_size is (32,)", lambda path: export(network(), image_size=(32,))),
    (ConfigError, "image_size is None", lambda path: export(network())),
    (ConfigError, "image_size is (0, 32)", lambda path: export(network(), image_size=(0, 32))),
    (ConfigError, "does not end in .pt2", lambda path: export(network(), path / "net.onnx", image_size=SIZE)),
    (ConfigError, "'layer1.0' has a forward hook", lambda path: export(with_hook("layer1.0"), image_size=SIZE)),
    (ConfigError, "the network has a forward hook", lambda path: export(with_hook(""), image_size=SIZE)),
    (ConfigError, "give a residuum.ResNet", lambda path: export(nn.Linear(1, 1), image_size=SIZE)),
    (DeviceError, "no weights", lambda path: export(network().to("meta"), image_size=SIZE)),
    (DeviceError, "fp16 is for accelerators", lambda path: export(network(), image_size=SIZE, precision="fp16")),
    (ExportError, "torch cannot export", lambda path: export(with_layer(Drawing()), path / "x.pt2", image_size=SIZE)),
    (ExportError, "cannot write", lambda path: export(network(), path / "no" / "x.pt2", image_size=SIZE)),
]


@pytest.mark.parametrize(("kind", "says", "act"), REFUSED, ids=[says for _, says, _ in REFUSED])
def test_what_cannot_be_is_refused_in_a_sentence_and_leaves_nothing(kind, says, act, tmp_path):
    with pytest.raises(kind) as raised:
        act(tmp_path)
    assert says in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_program_that_answers_otherwise_is_not_given_out_and_leaves_no_file(tmp_path, monkeypatch):
    captured = residuum.export.program._captured

    def wrong(net, *args):
        next(m for m in net.modules() if hasattr(m, "bias")).bias.mul_(1.01)
        return captured(net, *args)

    monkeypatch.setattr(residuum.export.program, "_captured", wrong)
    path = tmp_path / "net.pt2"
    path.write_bytes(b"as it was")
    for target in (None, path):
        with pytest.raises(ExportError, match=r"differ from the network's by .* not given out"):
            export(network(), target, image_size=SIZE)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_are_no_numbers_or_of_another_shape_prove_nothing():
    model, images = network(), [torch.randn(2, 3, *SIZE)]
    with torch.no_grad():
        assert prove(model, model, images, "fp32") == 0
        with pytest.raises(ExportError, match="not all numbers"):
            prove(lambda x: model(x) * float("nan"), model, images, "fp32")
        with pytest.raises(ExportError, match=r"gives \(1, 5\)"):
            prove(lambda x: model(x)[:1], model, images, "fp32")
