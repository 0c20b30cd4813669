"""Optimizer, learning rate and average, as the recipe says."""

import math

import pytest
import torch
from torch import nn

from residuum import ResNet, preset
from residuum.train.optim import (
    learning_rate,
    make_average,
    make_loss,
    make_optimizer,
    set_learning_rate,
    set_norm_momentum,
)
from residuum.train.optimizers import Lamb, Muon
from residuum.train.recipe import AverageSettings, LossSettings, OptimizerSettings, Recipe
from residuum.train.step import train_step


def rates(epochs=10, steps=10, lr=0.4, **schedule):
    """The learning rate of every step of a run, as shares of its peak."""
    recipe = Recipe(epochs=epochs).replace({"optimizer.lr": lr, "schedule": schedule})
    return [learning_rate(step, recipe, steps) / lr for step in range(epochs * steps)]


def test_by_itself_the_learning_rate_rises_straight_and_falls_along_a_cosine():
    shape = rates(2, 10, warmup=0.25)
    assert shape[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shape[5] == 1.0
    assert shape[12] == pytest.approx((1 + math.cos(math.pi * 7 / 15)) / 2)
    assert 0 < shape[-1] < 0.02


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("name", ["cosine", "linear", "step", "constant"])
def test_the_shortest_runs_have_a_learning_rate_too(name, steps, warmup):
    assert all(0 < share <= 1 for share in rates(1, steps, name=name, warmup=warmup))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "cosine", "warmup": 2, "min_lr": 0.1}, {0: 0.05, 19: 1, 20: 1, 60: 0.625, 99: 0.2503}),
        ({"name": "linear", "warmup": 0.2, "warmup_start": 0.5}, {0: 0.525, 19: 1, 20: 1, 60: 0.5, 99: 1 / 80}),
        ({"name": "triangle", "warmup": 0.2, "warmup_start": 0.2, "min_lr": 0.1}, {0: 0.2, 10: 0.6, 20: 1, 60: 0.625}),
        ({"name": "step", "warmup": 0, "milestones": (3, 0.6)}, {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01, 99: 0.01}),
        ({"name": "step", "milestones": (0.5,), "factor": 0.5, "min_lr": 0.3}, {9: 1, 49: 1, 50: 0.75}),
        ({"name": "constant", "warmup": 1}, {0: 0.1, 9: 1, 99: 1}),
    ],
)  # fmt: skip
def test_each_schedule_is_the_recipes(schedule, expected):
    shape = rates(**schedule)
    assert {step: shape[step] for step in expected} == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ResNet(preset("digits_resnet").replace(width=0.25))


def test_norms_and_biases_do_not_decay(network):
    optimizer = make_optimizer(network, OptimizerSettings(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        norm_or_bias = "bn" in name or "downsample.1" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0 if norm_or_bias else 0.1), name


@pytest.mark.parametrize(
    ("settings", "kind", "group"),
    [
        ({}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"momentum": 0.0}, torch.optim.SGD, {"momentum": 0.0, "nesterov": False}),
        ({"nesterov": False}, torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ({"name": "adamw", "betas": (0.8, 0.99)}, torch.optim.AdamW, {"betas": (0.8, 0.99), "eps": 1e-8}),
        ({"name": "lamb"}, Lamb, {"betas": (0.9, 0.999), "eps": 1e-6}),
        ({"name": "muon", "momentum": 0.6}, Muon, {"momentum": 0.6, "nesterov": True}),
    ],
)
def test_an_optimizer_is_what_its_settings_say(network, settings, kind, group):
    optimizer = make_optimizer(network, OptimizerSettings(**settings))
    assert type(optimizer) is kind
    assert optimizer.param_groups[-1].items() >= group.items()
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("adamw", 0.01), ("lamb", 0.03), ("muon", 0.03)])
def test_each_optimizer_makes_the_loss_smaller(network, name, lr):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10
    optimizer = make_optimizer(network, OptimizerSettings(name=name, lr=lr))
    losses = [train_step(network, optimizer, images, labels).loss.item() for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_clipping_brings_all_gradients_down_to_one_norm_before_the_step(network, name):
    optimizer = make_optimizer(network, OptimizerSettings(name=name, lr=1e-6, clip=0.5))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.nn.utils.get_total_norm(p.grad for p in network.parameters()).item() == pytest.approx(0.5, rel=1e-4)


def test_lamb_clips_to_a_norm_of_one_unless_told_otherwise(network):
    assert make_optimizer(network, OptimizerSettings(name="lamb")).clip == 1.0
    assert make_optimizer(network, OptimizerSettings(name="lamb", clip=0.5)).clip == 0.5


def test_a_groups_share_of_the_learning_rate_stays_its_own_through_the_schedule(network):
    optimizer = make_optimizer(network, OptimizerSettings(head_lr=10.0, bias_lr=2.0))
    set_learning_rate(optimizer, 0.3)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    fc, conv = network.fc, network.conv1
    assert [rate[id(p)] for p in (conv.weight, fc.weight, fc.bias)] == pytest.approx([0.3, 3.0, 6.0])


def test_the_loss_is_the_recipes_and_smooths_only_to_train():
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    smoothing = LossSettings(label_smoothing=0.1)
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(make_loss(smoothing)(logits, labels), expected)
    assert torch.equal(make_loss(smoothing, train=False)(logits, labels), nn.functional.cross_entropy(logits, labels))
    binary = LossSettings("bce", label_smoothing=0.0, threshold=0.2, sum_classes=True)
    hot = nn.functional.one_hot(labels, 4).float()
    expected = 4 * nn.functional.binary_cross_entropy_with_logits(logits, hot)
    torch.testing.assert_close(make_loss(binary)(logits, 0.7 * hot), expected)


def averages(window, total, values):
    """The average of one weight that takes these values, one a step."""
    layer = nn.Linear(1, 1)
    average = make_average(layer, AverageSettings(window), total)
    found = []
    for value in values:
        nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
        found.append(average.module.weight.item())
    return found


def test_the_average_is_a_plain_mean_until_its_window_is_full():
    assert averages(0.5, 8, [1, 2, 3, 6]) == pytest.approx([1, 1.5, 2, 3])


def test_then_each_step_moves_it_by_one_part_of_the_window():
    *_, before, after = averages(0.5, 8, [1, 1, 1, 1, 1, 9])
    assert (before, after) == pytest.approx((1, 3))


def test_a_window_of_the_run_gives_torchvisions_decay():
    """Its reference keeps 0.99998 an image-weighted update; over 23,458 updates that is a window of 3.91 %."""
    _, moved = averages(0.0391, 23_458, [0.0] * 1000 + [1.0])[-2:]
    assert 1 - moved == pytest.approx(0.998908, abs=1e-5)


def test_norms_statistics_are_averaged_and_their_counts_are_not():
    norm = nn.BatchNorm2d(1)
    average = make_average(norm, AverageSettings(0.9), 10)
    for level in (0.0, 10.0):
        norm(torch.full((2, 1, 2, 2), level))
        average.update_parameters(norm)
    assert average.module.running_mean.item() == pytest.approx(0.5)
    assert average.module.num_batches_tracked.item() == 2


def test_no_window_is_no_average():
    assert make_average(nn.Linear(1, 1), AverageSettings(0.0), 10) is None


def test_the_share_of_a_steps_statistics_in_the_running_ones_is_the_recipes(network):
    set_norm_momentum(network, 0.4)
    images = torch.randn(8, 1, 8, 8)
    network.train()(images)
    mean = network.conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(network.bn1.running_mean, 0.4 * mean)


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_buffers_of_the_average_are_averaged_or_the_networks(network, buffers):
    average = make_average(network, AverageSettings(window=0.9, buffers=buffers), 100)
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            for p in (network.bn1.running_mean, network.conv1.weight):
                p.fill_(value)
        average.update_parameters(network)
    assert average.module.conv1.weight.unique().tolist() == pytest.approx([2.0])
    assert average.module.bn1.running_mean.unique().tolist() == pytest.approx([2.0 if buffers == "average" else 3.0])
