"""Optimizer, learning rate and average, as the recipe says."""

import math

import pytest
import torch
from torch import nn

from residuum import ResNet, preset
from residuum.train.optim import learning_rate, make_average, make_optimizer, rate
from residuum.train.recipe import AverageSettings, OptimizerSettings, ScheduleSettings


def test_the_learning_rate_rises_straight_and_falls_along_a_cosine():
    shape = [rate(step, total=20, warmup=0.25) for step in range(20)]
    assert shape[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shape[5] == 1.0
    assert shape[12] == pytest.approx((1 + math.cos(math.pi * 7 / 15)) / 2)
    assert 0 < shape[-1] < 0.02


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_the_shortest_runs_have_a_learning_rate_too(total, warmup):
    assert all(0 < rate(step, total=total, warmup=warmup) <= 1 for step in range(total))


def test_its_peak_is_the_recipes():
    rates = [
        learning_rate(step, total=50, optimizer=OptimizerSettings(lr=0.4), schedule=ScheduleSettings(warmup=0.1))
        for step in range(50)
    ]
    assert max(rates) == 0.4


def test_norms_and_biases_do_not_decay():
    network = ResNet(preset("resnet18").replace(width=0.125))
    optimizer = make_optimizer(network, OptimizerSettings(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        norm_or_bias = "bn" in name or "downsample.1" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0 if norm_or_bias else 0.1), name


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
