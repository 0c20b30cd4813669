"""Frozen stages and norms stay frozen, and thawing gives them back."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from residuum import ConfigError, create, freeze
from residuum.nn.freezing import FrozenBatchNorm, unfreeze


def small(**fields):
    torch.manual_seed(0)
    return create("resnet18", width=0.125, num_classes=3, zero_init_residual=False, **fields)


def step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()


def test_frozen_parts_keep_their_weights_statistics_and_names():
    model = small()
    x = torch.randn(4, 3, 64, 64)
    names, before = list(model.state_dict()), model.eval()(x)
    assert freeze(model, stages=2) is model
    assert list(model.state_dict()) == names
    assert torch.equal(model.eval()(x), before)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    step(model)
    for name, value in model.state_dict().items():
        late = name.startswith(("layer3", "layer4", "fc"))
        moves = late and any(part in name for part in ("conv", "downsample.0", "fc"))
        assert torch.equal(value, kept[name]) != moves, name


def test_later_norms_go_on_where_norms_is_false():
    model = freeze(small(), stages=1, norms=False).train()
    early, late = model.layer1[0].bn1.running_mean.clone(), model.layer2[0].bn1.running_mean.clone()
    model(torch.randn(4, 3, 64, 64))
    assert torch.equal(model.layer1[0].bn1.running_mean, early)
    assert not torch.equal(model.layer2[0].bn1.running_mean, late)
    assert model.layer2[0].bn1.weight.requires_grad
    assert model.conv1.weight.requires_grad is False


def test_stages_beyond_the_network_cannot_be_frozen():
    with pytest.raises(ConfigError, match="this network has 4"):
        freeze(small(), stages=5)


def test_a_conversion_to_sync_batch_norm_leaves_frozen_norms_frozen():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(freeze(small(), stages=1, norms=False))
    assert isinstance(model.layer1[0].bn1, FrozenBatchNorm)
    assert isinstance(model.layer2[0].bn1, nn.SyncBatchNorm)
    frozen = freeze(model, stages=0)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in frozen.modules())
    assert isinstance(unfreeze(frozen).layer2[0].bn1, nn.SyncBatchNorm)


@pytest.mark.parametrize("order", [[(1, True)], [(1, False), (3, True)], [(4, True), (0, True)], [(2, False)]])
def test_thawed_everything_trains_as_before(order):
    model, plain = small(), small()
    for stages, norms in order:
        freeze(model, stages, norms=norms)
    assert unfreeze(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    for trained in (model, plain):
        torch.manual_seed(1)
        step(trained)
    for (name, value), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_hooks_on_a_norm_survive_freezing_and_thawing():
    model, calls = small(), []
    model.bn1.register_forward_hook(lambda *args: calls.append(1))
    x = torch.randn(2, 3, 32, 32)
    freeze(model)(x)
    unfreeze(model)(x)
    assert len(calls) == 2


def test_a_norm_with_a_parametrisation_is_refused_and_nothing_is_frozen():
    model = small()
    parametrize.register_parametrization(model.layer4[0].bn1, "weight", nn.Identity())
    with pytest.raises(ConfigError, match="parametrisation"):
        freeze(model)
    assert all(p.requires_grad for p in model.parameters())
