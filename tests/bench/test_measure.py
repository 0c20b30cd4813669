"""Measuring with real processes: what is equal comes out equal, what is slowed is found, what fails is named."""

import contextlib
import os
import signal
from dataclasses import replace

import pytest

from residuum.bench.contenders import Cell
from residuum.bench.measure import Trial, crew, measure, step_flops
from tests.bench.stand_ins import LARGE, prepare

CELL = Cell("resnet18", "train", "fp32", "nchw", "eager", 2, (32, 32))


def run(*names, sittings=2, rounds=3):
    heard = []
    *_, last = measure([CELL], [names], sittings, rounds, 1, heard.append, prepare)
    return last, heard


@pytest.mark.slow
def test_twins_come_out_as_no_different_and_one_slowed_by_five_percent_as_slower():
    result, _ = run("same", "twin", "slowed", sittings=3)
    twin, slowed = (result.ratio(result.row(name), "same") for name in ("twin", "slowed"))
    assert 0.98 < twin.low <= 1.005  # a sleep is exact to some tenths of a millisecond
    assert 0.995 <= twin.high < 1.02
    assert slowed.verdict == "slower"
    assert slowed.value == pytest.approx(1 / 1.05, abs=0.015)


@pytest.mark.slow
def test_all_have_a_time_for_each_round_their_turns_are_announced_and_their_peak_is_of_the_tensors_they_make():
    result, heard = run("same", "large")
    for times in (*(row.times for row in result.rows), *result.references.values()):
        assert [len(sitting) for sitting in times] == [3, 3]
    assert set(result.references) == {"fp32", "bf16"}
    assert len(heard) == 4 * 2 * (1 + 3)
    assert heard[0] == f"{CELL}: same gets ready, sitting 1 of 2"
    assert heard[-1].endswith("round 3 of 3, sitting 2 of 2")
    assert result.row("large").peak == LARGE
    assert result.row("same").peak == 0


@pytest.mark.slow
def test_one_that_fails_or_dies_is_left_out_with_the_reason_and_is_there_again_for_the_next_cell():
    names, cells = ("same", "broken", "dying"), [CELL, replace(CELL, batch=3)]
    results = list(measure(cells, [names, names], 2, 3, 1, prepare=prepare))
    assert [result.name for result in results] == [str(cell) for cell in cells]
    for result in results:
        assert [row.error for row in result.rows] == [
            "",
            "ValueError: no such kernel",
            "its process died (exit code 3)",
        ]
        assert [row.contender for row in result.measured()] == ["same"]
        assert sum(map(len, result.row("same").times)) == 6


@pytest.mark.slow
def test_every_sitting_has_new_processes_and_a_result_comes_as_soon_as_it_suffices(monkeypatch):
    processes = []

    @contextlib.contextmanager
    def watched(*arguments):
        with crew(*arguments) as workers:
            processes.append(workers["same"].process.pid)
            yield workers

    monkeypatch.setattr("residuum.bench.measure.crew", watched)
    first, second = measure([CELL], [("same",)], 3, 3, 1, prepare=prepare)
    assert len(set(processes)) == 3
    assert [len(result.row("same").times) for result in (first, second)] == [2, 3]
    assert second.row("same").times[:2] == first.row("same").times


def test_ctrl_c_is_not_for_the_workers_not_even_while_they_start():
    before = signal.getsignal(signal.SIGINT)
    with crew(("same",), 1, prepare) as workers:
        for worker in workers.values():
            os.kill(worker.process.pid, signal.SIGINT)
        trial = Trial(CELL, ("same",), 1, 3, str)
        trial.sit(workers)
        assert not trial.errors
        assert all(worker.process.is_alive() for worker in workers.values())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_training_step_of_resnet50_takes_three_times_its_forward_pass_less_the_gradient_of_the_images():
    infer, train = (
        step_flops(Cell("resnet50", task, "fp32", "nchw", "eager", 1, (224, 224))) for task in ("infer", "train")
    )
    assert infer == pytest.approx(8.18e9, rel=0.001)
    stem = 2 * 112 * 112 * 64 * 3 * 7 * 7
    assert train == 3 * infer - stem
