"""Groups of parameters: each in one, with the decay and the share of the learning rate that are asked for."""

import pytest

from residuum.factory import create
from residuum.train.groups import param_groups

EVERYTHING = {"bias_lr": 64.0, "head_lr": 10.0, "layer_decay": 0.8, "muon": True, "others_lr": 5.0}
CONFIGS = {
    "cifar_resnet20": {"width": 0.25},
    "resnet50d": {"width": 0.125, "depths": (1, 2, 1, 1)},
    "resnext50_32x4d": {"width": 0.125, "depths": (1, 1, 1, 1), "preact": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def network(request):
    return create(request.param, num_classes=5, **CONFIGS[request.param])


def by_name(network, **settings):
    """Parameter's name to what its group says."""
    names = {p: name for name, p in network.named_parameters()}
    groups = param_groups(network, weight_decay=1e-3, **settings)
    return {names[p]: group for group in groups for p in group["params"]}


@pytest.mark.parametrize("settings", [{}, {"decay": "all"}, EVERYTHING])
def test_each_parameter_is_in_one_group(network, settings):
    network.layer1.requires_grad_(False)  # frozen ones too, apart from the others
    groups = param_groups(network, weight_decay=1e-3, **settings)
    network.layer1.requires_grad_(True)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(network.parameters()))
    frozen = {id(p) for p in network.layer1.parameters()}
    assert all(len({id(p) in frozen for p in group["params"]}) == 1 for group in groups)


def test_convolutions_and_classifier_decay_norms_and_biases_do_not(network):
    parameters = dict(network.named_parameters())
    for name, group in by_name(network).items():
        assert group["weight_decay"] == (1e-3 if parameters[name].ndim > 1 else 0.0), name
        assert group["lr_scale"] == 1.0
    assert len(param_groups(network, weight_decay=1e-3)) == 2


def test_all_of_them_decay_where_that_is_asked(network):
    (group,) = param_groups(network, weight_decay=1e-3, decay="all")
    assert group["weight_decay"] == 1e-3


def test_rates_fall_from_the_head_down_block_by_block(network):
    blocks = [f"layer{s}.{b}." for s, stage in enumerate(network.stages, 1) for b in range(len(stage))]
    expected = {"conv1": len(blocks) + 1, "bn1": len(blocks) + 1, "fc": 0, "norm": 0}
    expected |= {name: len(blocks) - number for number, name in enumerate(blocks)}
    for name, group in by_name(network, layer_decay=0.5).items():
        (depth,) = [deep for prefix, deep in expected.items() if name.startswith(prefix)]
        assert group["lr_scale"] == 0.5**depth, name


def test_biases_and_the_classifier_have_their_own_rates(network):
    found = {name: group["lr_scale"] for name, group in by_name(network, bias_lr=64.0, head_lr=10.0).items()}
    assert found["fc.weight"] == 10
    assert found["fc.bias"] == 640
    others = {name: scale for name, scale in found.items() if not name.startswith("fc")}
    assert all(scale == (64 if name.endswith("bias") else 1) for name, scale in others.items())


def test_muon_takes_the_convolutions_and_the_rest_has_its_own_rate(network):
    found = by_name(network, muon=True, others_lr=5.0)
    parameters = dict(network.named_parameters())
    orthogonal = {name for name, group in found.items() if group["orthogonal"]}
    assert orthogonal
    assert all(parameters[name].ndim == 4 for name in orthogonal)
    assert all(group["lr_scale"] == (1 if name in orthogonal else 5) for name, group in found.items())
