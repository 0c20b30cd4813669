"""The network stacked by hand against ours: the same weights, logits, gradients and statistics."""

import copy

import pytest
import torch
from benchmarks.code_size.brute_force import ResNet50
from benchmarks.code_size.changes import load_in_order
from tests.networks import scramble

from residuum import create


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    ours = create("resnet50", num_classes=10)
    scramble(ours)
    theirs = ResNet50(num_classes=10)
    load_in_order(theirs, ours.state_dict())
    return ours, theirs


def test_same_logits_in_evaluation(pair):
    ours, theirs = (model.eval() for model in pair)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(theirs(x), ours(x))


@pytest.mark.slow
def test_a_training_step_gives_the_same_logits_gradients_and_statistics(pair):
    ours, theirs = (copy.deepcopy(model).train() for model in pair)
    x = torch.randn(4, 3, 64, 64)
    logits = [model(x) for model in (ours, theirs)]
    for out in logits:
        out.square().sum().backward()
    assert torch.equal(*logits)
    for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, their.grad), name
    for (name, mine), their in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, their), name


def test_weights_of_another_order_do_not_load():
    state = create("resnet50", num_classes=10).state_dict()
    with pytest.raises(RuntimeError):
        load_in_order(ResNet50(num_classes=10), dict(reversed(state.items())))
