"""Classes of unequal numbers: weights whose mean is 1, and orders in which each class has its due."""

import pytest
import torch

from residuum.data.balance import balanced_order, class_weights, weighted_order
from residuum.errors import ConfigError

LABELS = torch.tensor([0] * 50 + [1] * 10 + [3] * 2)  # none of class 2


def order(power, seed=0, labels=LABELS):
    return balanced_order(labels, power, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weights_go_by_the_number_of_images_and_their_mean_over_images_is_one(power):
    weights = class_weights(LABELS, 4, power)
    assert weights[LABELS].mean().item() == pytest.approx(1)
    assert (weights[1] / weights[0]).item() == pytest.approx(5**power)
    assert weights[2] == 0


def test_without_a_power_each_image_comes_once():
    for seed in range(20):
        assert order(0.0, seed).sort().values.tolist() == list(range(len(LABELS)))


def test_with_the_whole_power_classes_come_alike_and_images_of_a_class_too():
    for seed in range(20):
        numbers = order(1.0, seed)
        assert len(numbers) == len(LABELS)
        images = numbers % len(LABELS)
        counts = LABELS[images].bincount(minlength=4).tolist()
        assert counts[2] == 0
        assert all(20 <= counts[label] <= 21 for label in (0, 1, 3))
        rare = images[LABELS[images] == 3].bincount(minlength=62)[60:]
        assert rare.max() - rare.min() <= 1


def test_an_image_that_comes_again_is_another_view_of_it():
    numbers = order(1.0)
    assert len(numbers.unique()) == len(numbers)
    for image in (60, 61):
        views = sorted(int(n) // len(LABELS) for n in numbers if n % len(LABELS) == image)
        assert views == list(range(len(views)))


@pytest.mark.slow
def test_over_epochs_a_class_has_what_is_due_to_it_between_whole_numbers():
    labels = torch.tensor([0] * 7 + [1] * 3)
    counts = torch.stack([labels[order(0.5, seed, labels) % 10].bincount() for seed in range(2000)]).double()
    due = torch.tensor([7.0, 3.0]).sqrt()
    assert (counts.mean(0) - 10 * due / due.sum()).abs().max() < 0.05
    assert set(counts[:, 0].tolist()) == {6.0, 7.0}


def test_images_of_several_classes_are_refused():
    with pytest.raises(ConfigError, match="data.balance is for images of one class each"):
        class_weights(torch.eye(3), 3, 1.0)


def test_the_order_is_the_seeds():
    assert torch.equal(order(1.0, 3), order(1.0, 3))
    assert not torch.equal(order(1.0, 3), order(1.0, 4))


def test_weights_say_how_often_images_are_drawn():
    weights = torch.tensor([3.0, 1.0, 1.0, 0.0, 0.5, 1.5])
    due = weights.double() / weights.sum() * 6
    seen = torch.zeros(6, dtype=torch.float64)
    for seed in range(2000):
        order = weighted_order(weights, torch.Generator().manual_seed(seed))
        assert len(order) == 6
        assert len(set(order.tolist())) == 6  # what comes again is a further view
        counts = (order % 6).bincount(minlength=6)
        assert ((counts - due).abs() < 1).all()
        seen += counts
    assert torch.allclose(seen / 2000, due, atol=0.05)


def test_equal_weights_draw_each_image_once():
    order = weighted_order(torch.full((101,), 0.1), torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(101))
