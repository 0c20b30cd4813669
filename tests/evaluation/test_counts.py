"""Counts against scikit-learn's and scipy's own on the same predictions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from residuum.evaluation.counts import BINS, Paired, Share, count, pair, ranking

NAMES = ("cat", "dog", "fox", "owl", "hen", "cow", "ant")


def made_up(images=500, classes=7, seed=0, present=None):
    """Random probabilities that are right more often than not, and labels of some of the classes."""
    random = np.random.default_rng(seed)
    labels = random.choice(present if present is not None else classes, images)
    logits = random.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    odds = np.exp(logits)
    return labels, odds / odds.sum(1, keepdims=True)


def counted(labels, probabilities):
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    return count(NAMES[: probabilities.shape[1]], labels, probabilities, losses)


@pytest.mark.parametrize("present", [None, [0, 2, 3]], ids=["all classes", "some classes"])
def test_everything_equals_scikit_learn(present):
    labels, probabilities = made_up(present=present)
    found, every = counted(labels, probabilities), list(range(7))
    said = probabilities.argmax(1)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(labels, said, labels=every))
    assert found.accuracy.value == metrics.accuracy_score(labels, said)
    assert found.top.value == metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=every)
    assert found.loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=every), rel=1e-12)
    recalls = metrics.recall_score(labels, said, labels=sorted(set(labels)), average="macro", zero_division=0)
    assert found.balanced_accuracy == pytest.approx(recalls, rel=1e-12)
    table = metrics.precision_recall_fscore_support(labels, said, labels=every, zero_division=np.nan)
    for row, theirs in zip(found.by_class(), zip(*table, strict=True), strict=True):
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(theirs, rel=1e-12, nan_ok=True)


def test_how_images_are_split_changes_no_count():
    labels, probabilities = made_up(images=101)
    whole = counted(labels, probabilities)
    for world in (2, 3):
        parts = [counted(labels[r::world], probabilities[r::world]) for r in range(world)]
        assert np.array_equal(sum(part.confusion for part in parts), whole.confusion)
        assert sum(part.top.hits for part in parts) == whole.top.hits
        assert sum(part.top.of for part in parts) == whole.top.of == 101


@given(of=st.integers(1, 10_000), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_interval_is_wilsons(of, share):
    hits = round(of * share)
    theirs = stats.binomtest(hits, of).proportion_ci(method="wilson")
    assert Share(hits, of).interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_network_that_says_what_it_knows_is_calibrated_and_one_that_boasts_is_not():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 20_000)
    right = random.random(20_000) < confidence
    labels = np.where(right, 0, 1)
    honest = counted(labels, np.stack([confidence, 1 - confidence], 1))
    boasting = counted(labels, np.tile([0.999, 0.001], (20_000, 1)))
    assert honest.calibration_error < 0.02
    assert boasting.calibration_error == pytest.approx(0.999 - right.mean(), abs=1e-9)
    assert sum(b.count for b in honest.bins) == 20_000
    assert len(honest.bins) == BINS


def test_of_equal_probabilities_the_lower_label_comes_first():
    assert ranking(np.full((1, 7), 1 / 7)).tolist() == [[0, 1, 2, 3, 4]]


def test_the_commonest_mistakes_are_named_first():
    labels = np.array([0, 0, 0, 1, 2])
    said = np.eye(3)[[1, 1, 2, 0, 2]]
    assert count(NAMES[:3], labels, said, np.zeros(5)).confused() == [
        ("cat", "dog", 2),
        ("cat", "fox", 1),
        ("dog", "cat", 1),
    ]


def test_pairs_are_counted_and_tested_as_mcnemar_says():
    first = np.array([True] * 60 + [False] * 40)
    second = np.array([True] * 50 + [False] * 10 + [True] * 25 + [False] * 15)
    found = pair(first, second)
    assert found == Paired(50, 10, 25, 15)
    assert found.difference == pytest.approx(0.15)
    assert found.p == pytest.approx(stats.binomtest(10, 35).pvalue)
    low, high = found.interval
    assert 0 < low < 0.15 < high


def test_a_network_equals_itself_and_one_with_a_twentieth_of_its_labels_flipped_is_told_apart():
    random = np.random.default_rng(3)
    labels = random.integers(0, 10, 360)
    said = np.where(random.random(360) < 0.02, (labels + 1) % 10, labels)
    flipped = np.where(random.random(360) < 0.05, (said + 3) % 10, said)
    itself = pair(said == labels, said == labels)
    assert (itself.difference, itself.p) == (0, 1)
    assert itself.interval[0] < 0 < itself.interval[1]
    other = pair(said == labels, flipped == labels)
    assert other.interval[1] < 0 and other.p < 0.01


def test_a_paired_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    shares = np.array([0.6, 0.08, 0.12, 0.2])  # a true difference of 0.04
    hits = 0
    for both, first, second, neither in random.multinomial(200, shares, 2000):
        low, high = Paired(both, first, second, neither).interval
        hits += low <= 0.04 <= high
    assert 0.93 <= hits / 2000 <= 0.98
