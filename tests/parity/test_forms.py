"""Weights of every peer come in by load_weights and go out again: names and shapes of all, logits of each knob."""

import pytest
import torch

from residuum import ResNet, ResNetConfig
from residuum.weights.converting import in_layout
from residuum.weights.loading import load_weights
from tests.networks import relative, scramble
from tests.parity.forms import Detectron, all_forms, compare

pytest.importorskip("timm")
pytest.importorskip("transformers")
FORMS = list(all_forms())
QUICK = [
    "torchvision:resnext50_32x4d", "timm:test_resnet", "timm:resnet26t", "timm:seresnet18", "timm:ecaresnetlight",
    "timm:resnetblur18", "timm:resnetaa34d", "timm:resnetrs50", "timm:resnet50_gn", "timm:resnet50c",
    "timm:resnetv2_18d", "timm:resnetv2_50t", "timm:resnetv2_50d_gn", "timm:resnetv2_50x1_bit",
    *(form.name for form in FORMS if form.name.startswith("hf:")), "detectron2:r50", "detectron2:r50-v1.5",
]  # fmt: skip
FIRST = ["timm:seresnet18", "timm:resnetv2_18d", "hf:bottleneck-inside", "detectron2:r50"]
SLOW = ["timm:senet154", "detectron2:x101-32x8d"]


def test_all_networks_are_compared():
    names = [form.name for form in FORMS]
    assert sum(name.startswith("timm:") for name in names) >= 79 + 18
    assert sum(name.startswith("torchvision:") for name in names) == 10
    assert sum(name.startswith("hf:") for name in names) == 6
    assert len(set(names)) == len(names)
    assert set(QUICK + SLOW) <= set(names)


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form.name in QUICK else pytest.mark.slow) for form in FORMS], ids=str
)
def test_names_and_shapes_go_in_and_out(form):
    with torch.device("meta"):
        peer, ours = form.build().state_dict(), ResNet(form.config)
    written = in_layout(ours.state_dict(), form.config, form.layout)
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in peer.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in QUICK + SLOW]
)
def test_same_logits_and_input_gradients(name):
    form = next(form for form in FORMS if form.name == name)
    size = (64, 96) if form.even else (65, 81)
    assert max(compare(form, size)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnetv2_18", "hf:bottleneck-inside", "detectron2:r50"])
def test_the_peer_loads_what_we_write(name):
    form = next(form for form in FORMS if form.name == name)
    torch.manual_seed(0)
    ours, peer = ResNet(form.config).eval(), form.build().eval()
    peer.load_state_dict(in_layout(ours.state_dict(), form.config, form.layout), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        out = peer(x)
        assert torch.allclose(ours(x), getattr(out, "logits", out), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:resnet26t", "timm:resnetv2_50x1_bit", "hf:basic", "detectron2:r50"])
def test_there_and_back_again_is_the_same(name):
    form = next(form for form in FORMS if form.name == name)
    ours, again = ResNet(form.config), ResNet(form.config)
    report = load_weights(again, in_layout(ours.state_dict(), form.config, form.layout))
    assert not report.notes
    for (key, value), other in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_frozen_norms_in_detectron2s_own_arithmetic():
    torch.manual_seed(0)
    peer = Detectron((2, 1, 1, 1), explicit=True)
    scramble(peer)
    ours = ResNet(ResNetConfig(depths=(2, 1, 1, 1), stride_on="1x1", num_classes=10)).eval()
    load_weights(ours, peer.state_dict())
    x = torch.randn(1, 3, 65, 81)
    assert relative(ours(x), peer(x)) <= 1e-5
