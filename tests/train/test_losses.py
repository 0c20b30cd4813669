"""The losses, against targets and sums written by hand."""

import math

import pytest
import torch

from residuum.train.losses import binary_cross_entropy, cross_entropy, right_answers, smoothed, soft_targets
from residuum.train.mixing import Mixed

CLASSES = 4
IDS = torch.tensor([2, 0, 1, 0, 1, 3])
LOGITS = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(0)) * 3

# Rows of shares by hand: the ids themselves; mixed with the row before at 0.7 (MixUp); at 0.75, a box of a quarter of
# the image (CutMix); and one mixed after the other.
BY_HAND = {
    "ids": [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
    "mixup": [
        [0, 0, 0.7, 0.3], [0.7, 0, 0.3, 0], [0.3, 0.7, 0, 0], [0.7, 0.3, 0, 0], [0.3, 0.7, 0, 0], [0, 0.3, 0, 0.7],
    ],
    "cutmix": [
        [0, 0, 0.75, 0.25], [0.75, 0, 0.25, 0], [0.25, 0.75, 0, 0], [0.75, 0.25, 0, 0], [0.25, 0.75, 0, 0],
        [0, 0.25, 0, 0.75],
    ],
    "both": [
        [0, 0.075, 0.525, 0.4], [0.525, 0, 0.4, 0.075], [0.4, 0.525, 0.075, 0], [0.6, 0.4, 0, 0], [0.4, 0.6, 0, 0],
        [0.075, 0.4, 0, 0.525],
    ],
}  # fmt: skip


def mixed(labels, share):
    partners = labels.roll(1, 0)
    return Mixed(torch.zeros(6, 1, 1, 1), labels, partners, share).targets(CLASSES)


TARGETS = {
    "ids": IDS,
    "mixup": mixed(IDS, 0.7),
    "cutmix": mixed(IDS, 0.75),
    "both": mixed(mixed(IDS, 0.7), 0.75),
}


def rows(kind, smoothing):
    """The targets by hand in fp64, a share of each spread over the classes."""
    return [[share * (1 - smoothing) + smoothing / CLASSES for share in row] for row in BY_HAND[kind]]


def by_hand(loss, kind, smoothing):
    total = 0.0
    for logits, target in zip(LOGITS.tolist(), rows(kind, smoothing), strict=True):
        if loss == "ce":
            log_sum = math.log(sum(math.exp(z) for z in logits))
            total += sum(t * (log_sum - z) for t, z in zip(target, logits, strict=True))
        else:
            pairs = zip(target, logits, strict=True)
            total += sum(t * math.log1p(math.exp(-z)) + (1 - t) * math.log1p(math.exp(z)) for t, z in pairs) / CLASSES
    return total / len(LOGITS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", BY_HAND)
def test_targets_are_those_written_by_hand(kind, smoothing):
    ours = smoothed(soft_targets(TARGETS[kind], CLASSES), smoothing)
    torch.testing.assert_close(ours, torch.tensor(rows(kind, smoothing)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize(("name", "loss"), [("ce", cross_entropy), ("bce", binary_cross_entropy)])
def test_a_loss_is_that_of_targets_written_by_hand(name, loss, kind, smoothing):
    targets = TARGETS[kind] if kind == "ids" else torch.tensor(BY_HAND[kind], dtype=torch.float64)
    ours = loss(LOGITS.double(), targets, label_smoothing=smoothing)  # in fp64, where 1e-7 is more than rounding
    assert float(ours) == pytest.approx(by_hand(name, kind, smoothing), abs=1e-7, rel=0)
    rounded = loss(LOGITS, TARGETS[kind], label_smoothing=smoothing)
    assert rounded.dtype == torch.float32
    assert float(rounded) == pytest.approx(float(ours), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_above_a_threshold_a_class_is_wholly_in_the_image(smoothing):
    hot = torch.tensor([[0.0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]])
    ours = binary_cross_entropy(LOGITS, TARGETS["mixup"], threshold=0.2, label_smoothing=smoothing)
    assert torch.equal(ours, binary_cross_entropy(LOGITS, hot, label_smoothing=smoothing))
    one_class = binary_cross_entropy(LOGITS, TARGETS["mixup"], threshold=0.5)
    assert torch.equal(one_class, binary_cross_entropy(LOGITS, IDS))


def test_the_sum_over_classes_is_their_number_times_the_mean():
    mean, total = (binary_cross_entropy(LOGITS, IDS, sum_classes=summed) for summed in (False, True))
    assert float(total) == pytest.approx(CLASSES * float(mean), rel=1e-6)


def test_logits_in_bf16_are_summed_in_fp32():
    rounded = LOGITS.bfloat16()
    for loss in (cross_entropy, binary_cross_entropy):
        assert torch.equal(loss(rounded, IDS), loss(rounded.float(), IDS))


def test_right_answers_are_whole_for_class_ids_and_weighed_by_share_for_mixed_images():
    logits = torch.eye(CLASSES)[torch.tensor([2, 2, 1, 1, 0, 0])]
    answers = right_answers(logits, IDS)
    assert (answers.dtype, int(answers)) == (torch.int64, 2)
    assert float(right_answers(logits, TARGETS["mixup"])) == pytest.approx(0.7 + 0.3 + 0.7 + 0.3 + 0.3 + 0)


# -- weights of classes ------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.5, 2.0, 0.25, 4.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_an_image_counts_by_the_weight_of_its_class_and_a_mixed_one_by_its_shares(loss, kind, smoothing):
    found = loss(LOGITS, TARGETS[kind], label_smoothing=smoothing, weights=WEIGHTS)
    one_by_one = [loss(LOGITS[i : i + 1], TARGETS[kind][i : i + 1], label_smoothing=smoothing).item() for i in range(6)]
    weights = [sum(w * s for w, s in zip(WEIGHTS.tolist(), row, strict=True)) for row in BY_HAND[kind]]
    assert found.item() == pytest.approx(sum(w * v for w, v in zip(weights, one_by_one, strict=True)) / 6, rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_weights_that_are_all_one_change_nothing(loss):
    torch.testing.assert_close(loss(LOGITS, IDS, weights=torch.ones(CLASSES)), loss(LOGITS, IDS))
