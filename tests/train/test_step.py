"""A step of training and a pass of evaluation, of plain and of wrapped networks."""

import copy

import pytest
import torch
from torch import nn

from residuum import ResNet, freeze, preset
from residuum.train import evaluate, train_step
from residuum.train.optim import make_loss, make_optimizer
from residuum.train.recipe import LossSettings, OptimizerSettings


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)


def network():
    torch.manual_seed(0)
    return ResNet(preset("digits_resnet").replace(width=0.25)).train()


class Wrapped(nn.Module):
    """As DistributedDataParallel and others wrap a network."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def steps(model, net, batch, count=3):
    optimizer = make_optimizer(model, OptimizerSettings())
    return [train_step(net, optimizer, *batch, loss=make_loss(LossSettings())) for _ in range(count)]


def test_a_step_is_what_plain_pytorch_does(batch):
    model, plain = network(), network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(batch[0]), batch[1]).backward()
        optimizer.step()
    ours = make_optimizer(model, OptimizerSettings(weight_decay=0.0))
    for _ in range(3):
        train_step(model, ours, *batch)
    for one, two in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_wrapped_network_takes_the_very_same_steps(batch):
    plain, inner = network(), network()
    first, second = steps(plain, plain, batch), steps(inner, Wrapped(inner), batch)
    assert [s.loss.item() for s in first] == [s.loss.item() for s in second]
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), inner.state_dict().values(), strict=True))


def test_a_step_tells_loss_and_right_answers_without_a_graph(batch):
    model = network()
    loss, correct = steps(model, model, batch, 1)[0]
    assert not loss.requires_grad
    assert 0 <= int(correct) <= 8
    assert correct.dtype == torch.long


def test_weights_stay_in_fp32_where_convolutions_compute_in_bf16(batch):
    model = network()
    train_step(model, make_optimizer(model, OptimizerSettings()), *batch, bf16=True)
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_counts_each_image_once_whatever_the_batches(batch, size):
    model = network().eval()
    images, labels = batch
    with torch.no_grad():
        logits = model(images)
    found = evaluate(model, zip(images.split(size), labels.split(size), strict=True))
    assert found.images == 8
    assert found.correct == int((logits.argmax(1) == labels).sum())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.accuracy == found.correct / 8


def test_evaluation_changes_neither_weights_nor_modes(batch):
    model = network()
    freeze(model, 1)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    evaluate(model, [batch])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == modes


def test_modes_are_put_back_when_an_image_fails(batch):
    model = network()

    def failing():
        yield batch
        raise OSError

    with pytest.raises(OSError):
        evaluate(model, failing())
    assert model.training
