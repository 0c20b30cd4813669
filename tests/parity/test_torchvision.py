"""Against torchvision in the same process: names, logits, gradients and running statistics of all its ResNets."""

import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from residuum import create
from tests.networks import relative, scramble

NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


def pair(name, **theirs):
    peer = torchvision.models.get_model(name, weights=None, num_classes=10, **theirs)
    scramble(peer)
    return peer, create(name, num_classes=10)


QUICK = ("resnet18", "resnext50_32x4d")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_same_names_logits_gradients_and_statistics(name):
    torch.manual_seed(0)
    peer, ours = pair(name)
    assert [(k, v.shape) for k, v in peer.state_dict().items()] == [(k, v.shape) for k, v in ours.state_dict().items()]
    ours.load_state_dict(peer.state_dict(), strict=True)
    peer.load_state_dict(ours.state_dict(), strict=True)
    x, labels = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))

    with torch.inference_mode():
        assert relative(ours.eval()(x), peer.eval()(x)) <= 1e-6

    outputs = []
    for model in (peer, ours):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)
        logits = model(x)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        outputs.append(logits.detach())
    assert relative(outputs[1], outputs[0]) <= 1e-6
    theirs = dict(peer.named_parameters())
    for key, parameter in ours.named_parameters():
        assert relative(parameter.grad, theirs[key].grad) <= 1e-6, key
    for key, value in peer.state_dict().items():  # parameters after the step, and running statistics
        assert relative(ours.state_dict()[key].double(), value.double()) <= 1e-6, key


def test_features_are_those_of_the_feature_extractor():
    torch.manual_seed(0)
    peer, ours = pair("resnet50")
    ours.load_state_dict(peer.state_dict())
    nodes = [f"layer{i}" for i in range(1, 5)]
    x = torch.randn(2, 3, 97, 113)
    with torch.inference_mode():
        expected = create_feature_extractor(peer.eval(), nodes)(x)
        features = ours.eval().features(x)
    for name, feature, info in zip(nodes, features, ours.feature_info[1:], strict=True):
        assert torch.equal(feature, expected[name])
        assert info.name == name
        assert feature.shape[1] == info.channels


@pytest.mark.slow
@pytest.mark.parametrize(("output_stride", "flags"), [(16, (False, False, True)), (8, (False, True, True))])
def test_output_stride_dilates_as_torchvision_does(output_stride, flags):
    torch.manual_seed(0)
    peer, _ = pair("resnet50", replace_stride_with_dilation=flags)
    ours = create("resnet50", num_classes=10, output_stride=output_stride)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(1, 3, 75, 64)
    with torch.inference_mode():
        assert relative(ours.eval()(x), peer.eval()(x)) <= 1e-6
