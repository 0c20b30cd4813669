"""Classes of unequal numbers in training: what `balance` reaches."""

import numpy as np
import pytest
import torch
from scipy import stats

from residuum.data.catalog import scan
from residuum.data.settings import DataSettings
from residuum.data.sources import Split, open_dataset
from residuum.train import Execution, Recipe, session
from residuum.train.loop import train_epochs
from residuum.train.optim import make_optimizer
from residuum.train.state import State

CPU = torch.device("cpu")
FEW, MANY = 2, 100  # images of each of the last five classes, and of each of the first five


@pytest.fixture(scope="module")
def digits():
    """The digits, and their training images of which the last five classes have next to none."""
    dataset = open_dataset(scan("digits"), DataSettings(holdout=0.0), channels=1, cache=None)
    labels = dataset.train.labels
    chosen = torch.cat([(labels == c).nonzero()[: MANY if c < 5 else FEW, 0] for c in range(10)])
    return dataset, Split(dataset.train.images[chosen], labels[chosen])


def balanced_accuracy(digits, seed, **changes):
    """The mean over the classes of the share of test images that is right, after a short run."""
    dataset, train = digits
    fields = {"model.width": 0.25, "precision": "fp32", "epochs": 16, "batch_size": 32, "seed": seed} | changes
    recipe = Recipe().replace(fields)
    torch.manual_seed(seed)
    network = session.make_network(recipe.model, CPU, "fp32")
    loader = session.loader_for(recipe, Execution(), dataset, train, CPU, train=True)
    state = State(network, make_optimizer(network, recipe.optimizer))
    state.class_weights = session.weights_of_classes(recipe, train.labels, CPU)
    state.progress.begin_epoch(len(loader), CPU)
    train_epochs(state, network, recipe, loader, None)
    images, labels = next(iter(session.loader_for(
        recipe.replace(batch_size=1000), Execution(), dataset, dataset.test, CPU, train=False
    ).epoch(0)))  # fmt: skip
    with torch.inference_mode():
        right = network.eval()(images).argmax(1) == labels
    return np.mean([right[labels == c].double().mean().item() for c in range(10)])


@pytest.mark.slow
def test_rare_classes_are_recognised_better_where_they_are_drawn_more_often(digits):
    changes = {"data.balance": "sampler"}
    gains = np.array([balanced_accuracy(digits, s, **changes) - balanced_accuracy(digits, s) for s in range(6)])
    interval = stats.t.interval(0.95, len(gains) - 1, gains.mean(), stats.sem(gains))
    assert interval[0] > 0, gains
