"""Schedules at their corners: first step, end of the rise, milestones, last step."""

from itertools import pairwise

import pytest

from residuum.train.schedules import constant, cosine, linear, steps, steps_of, triangle

TOTAL, WARMUP = 100, 10


@pytest.mark.parametrize("schedule", [cosine, linear, constant, lambda *a, **k: steps(*a, milestones=[50], **k)])
def test_a_rise_is_straight_loses_no_step_and_ends_at_the_peak(schedule):
    assert [schedule(i, TOTAL, warmup=4) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [schedule(i, TOTAL, warmup=4, start=0.2) for i in range(4)] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert schedule(0, TOTAL) == 1.0


def test_cosine_falls_by_half_a_cosine():
    assert cosine(WARMUP, TOTAL, warmup=WARMUP) == 1.0
    assert cosine(55, TOTAL, warmup=WARMUP) == pytest.approx(0.5)
    assert 0 < cosine(99, TOTAL, warmup=WARMUP) < 0.001
    assert cosine(55, TOTAL, warmup=WARMUP, end=0.2) == pytest.approx(0.6)
    assert cosine(99, TOTAL, warmup=WARMUP, end=0.2) == pytest.approx(0.2, abs=1e-3)


def test_linear_falls_by_a_straight_line():
    values = [linear(i, TOTAL, warmup=WARMUP, end=0.1) for i in range(WARMUP, TOTAL)]
    assert values[0] == 1.0
    assert {round(a - b, 9) for a, b in pairwise(values)} == {0.01}
    assert values[-1] == pytest.approx(0.11)


def test_triangle_rises_from_its_start_to_its_peak_and_falls_to_its_end():
    at = {i: triangle(i, TOTAL, peak=20, start=0.2, end=0.07) for i in (0, 10, 20, 60, 99)}
    assert at == pytest.approx({0: 0.2, 10: 0.6, 20: 1.0, 60: 0.535, 99: 1 - 0.93 * 79 / 80})
    assert triangle(0, TOTAL, peak=0) == 1.0
    assert triangle(99, TOTAL, peak=99) == 1.0


def test_steps_fall_at_their_milestones_and_not_below_the_end():
    values = [steps(i, TOTAL, milestones=[30, 60], warmup=5) for i in range(TOTAL)]
    assert values[29] == 1.0
    assert values[30:60] == pytest.approx([0.1] * 30)
    assert values[60:] == pytest.approx([0.01] * 40)
    assert steps(99, TOTAL, milestones=[30, 60], factor=0.2, end=0.05) == 0.05


@pytest.mark.parametrize("schedule", [cosine, linear, constant])
def test_runs_of_one_step_and_of_warmup_alone_have_a_rate(schedule):
    assert schedule(0, 1) == 1.0
    assert schedule(0, 1, warmup=1) == 1.0
    assert schedule(1, 2, warmup=2) == 1.0


def test_a_length_is_a_share_below_one_and_epochs_from_one_on():
    assert steps_of(0.25, 90 * 7, 90) == 158
    assert steps_of(30, 90 * 7, 90) == 210
    assert steps_of(1.5, 90 * 7, 90) == 10
    assert steps_of(0, 90 * 7, 90) == 0
