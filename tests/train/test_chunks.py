"""A step in chunks: statistics, gradients and loss are those of a mean over chunks, and one chunk is a plain step."""

import copy

import pytest
import torch
from tests.networks import scramble
from torch import nn

from residuum import ResNet, freeze, preset
from residuum.data.loaders import Schedule
from residuum.memory import recompute
from residuum.train.chunks import Cut, train_chunks
from residuum.train.distributed import ALONE
from residuum.train.losses import cross_entropy
from residuum.train.step import train_step


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = ResNet(preset("digits_resnet").replace(width=0.25)).to(memory_format=torch.channels_last).train()
    scramble(made)
    return made


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)


def step(model, batch, count, size=None, momentum=0.9):
    cut = Cut.of(Schedule(16, 16, 0, True, norm_batch=size or 16 // count))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    chunks = zip(cut.apart(batch[0]), cut.apart(batch[1]), strict=True)
    return train_chunks(model, model, optimizer, chunks, cut, 16, ALONE, bf16=False, loss=cross_entropy)


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_running_statistics_are_the_mean_over_chunks_and_move_once(network, batch):
    before, apart = copy.deepcopy(network), [copy.deepcopy(network) for _ in range(4)]
    step(network, batch, 4)
    for number, one in enumerate(apart):
        with torch.no_grad():
            one(batch[0][4 * number : 4 * number + 4])
    for place, norm in enumerate(norms(network)):
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(norms(one)[place], name).double() for one in apart]).mean(0).float()
            assert torch.equal(getattr(norm, name), mean)
        assert int(norm.num_batches_tracked) == int(norms(before)[place].num_batches_tracked) + 1


def test_one_chunk_is_a_plain_step(network, batch):
    plain = copy.deepcopy(network)
    found = step(network, batch, 1)
    expected = train_step(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), *batch)
    assert found.loss == expected.loss
    assert found.correct == expected.correct
    for one, two in zip(network.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_loss_and_gradients_count_each_image_alike_where_the_last_chunk_is_short(network, batch):
    """Norms that take no statistics make an image's loss its own."""
    freeze(network, 0)
    network.requires_grad_(True)
    plain = copy.deepcopy(network)
    found = step(network, batch, 3, size=6)
    expected = train_step(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), *batch)
    torch.testing.assert_close(found.loss, expected.loss)
    for one, two in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_frozen_norms_stay_as_they_are(network, batch):
    freeze(network, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step(network, batch, 4)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


@pytest.mark.parametrize("mode", ["selective", "block", "stage"])
def test_recomputation_changes_no_bit(network, batch, mode):
    plain = copy.deepcopy(network)
    step(plain, batch, 4)
    recompute(network, mode)
    step(network, batch, 4)
    for one, two in zip(network.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_chunks_of_a_step_that_lacks_images_are_as_even_as_can_be():
    cut = Cut.of(Schedule(64, 64, 0, True, norm_batch=16))
    assert [len(part) for part in cut.apart(torch.zeros(64))] == [16] * 4
    assert [len(part) for part in cut.apart(torch.zeros(61))] == [16, 15, 15, 15]
