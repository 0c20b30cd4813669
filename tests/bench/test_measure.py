"""Measuring: what is equal comes out equal, what is slowed is found, what fails is named."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import patch

import pytest

from residuum.bench.contenders import Contender
from residuum.bench.measure import apart, measure
from residuum.bench.workloads import Workload
from tests.bench.stand_ins import CLOCK, LARGE, here, prepare
from tests.warm import start_contenders_warm

WORKLOAD = Workload("resnet18", "train", "fp32", "nchw", "eager", 2, (32, 32))


def named(*names):
    return tuple(map(Contender, names))


def run(*names, repetitions=2, rounds=3, workloads=(WORKLOAD,), processes=here):
    heard = []
    parts = [named(*names)] * len(workloads)

    def say(workload, doing):
        heard.append((workload, doing))

    return list(measure(workloads, parts, repetitions, rounds, 1, say, prepare, processes)), heard


@pytest.fixture(scope="module")
def three_repetitions():
    with patch("residuum.bench.measure.now", CLOCK.now):
        return run("same", "twin", "slowed", "large", "broken", repetitions=3, rounds=2)


def test_twins_come_out_as_no_different_and_one_slowed_by_five_percent_as_slower(three_repetitions):
    *_, result = three_repetitions[0]
    twin, slowed = (result.ratio(result.row(name), "same") for name in ("twin", "slowed"))
    assert 0.98 < twin.low <= 1 <= twin.high < 1.02
    assert twin.verdict.startswith("noise")
    assert slowed.verdict == "slower"
    assert slowed.value == pytest.approx(1 / 1.05, abs=0.015)


def test_a_result_comes_after_each_repetition_with_all_times_so_far(three_repetitions):
    results = three_repetitions[0]
    assert [len(result.row("same").times) for result in results] == [1, 2, 3]
    assert results[2].row("same").times[:2] == results[1].row("same").times
    for times in (*(row.times for row in results[2].measured()), *results[2].references.values()):
        assert [len(repetition) for repetition in times] == [2, 2, 2]
    assert set(results[2].references) == {"fp32"}  # nothing was measured in bf16


def test_the_machine_is_measured_in_each_precision_that_a_contender_has():
    assert set(run("same", "half")[0][-1].references) == {"fp32", "bf16"}
    assert set(run("half")[0][-1].references) == {"bf16"}


def test_what_is_done_is_said_before(three_repetitions):
    heard = three_repetitions[1]
    assert len(heard) == 6 * 3 * (1 + 2)
    assert heard[0] == (str(WORKLOAD), "same: gets ready, repetition 1 of 3")
    assert heard[-1][1].endswith("round 2 of 2, repetition 3 of 3")


def test_the_peak_is_of_the_tensors_that_a_step_makes(three_repetitions):
    *_, result = three_repetitions[0]
    assert result.row("large").peak == LARGE
    assert result.row("same").peak == 0


def test_one_that_fails_is_left_out_with_the_reason_in_one_line(three_repetitions):
    for result in three_repetitions[0]:
        assert [row.error for row in result.rows] == ["", "", "", "", "ValueError: no such kernel"]


class Watched:
    """Processes of contenders, and which they were."""

    pids: ClassVar[set[int]] = set()

    def __init__(self, *arguments):
        self.around = apart(*arguments)

    def __enter__(self):
        processes = self.around.__enter__()
        self.pids.add(processes[Contender("same")].process.pid)
        return processes

    def __exit__(self, *error):
        return self.around.__exit__(*error)


@pytest.mark.slow
def test_every_repetition_has_new_processes_and_one_that_died_is_there_again_for_the_next_workload(monkeypatch):
    there = {name: getattr(signal, name) for name in ("signal", "SIGINT", "SIG_IGN")}
    monkeypatch.setattr("residuum.bench.measure.signal", SimpleNamespace(**there))  # Windows has no SIGKILL
    start_contenders_warm(monkeypatch)
    workloads = (WORKLOAD, replace(WORKLOAD, batch_size=3))
    results, _ = run("same", "dying", rounds=1, workloads=workloads, processes=Watched)
    assert len(Watched.pids) == 2
    assert [result.name for result in results] == [*map(str, workloads)] * 2
    for result in results:
        assert [row.error for row in result.rows] == ["", "its process died (exit code 3)"]


@pytest.mark.slow
def test_ctrl_c_is_not_for_the_processes_of_contenders_not_even_while_they_start():
    before = signal.getsignal(signal.SIGINT)
    same = Contender("same")
    with apart((same,), 1, prepare) as processes:
        os.kill(processes[same].process.pid, signal.SIGINT)
        assert processes[same].get_ready(same, WORKLOAD, memory=False).precision == "fp32"
        assert processes[same].process.is_alive()
    assert signal.getsignal(signal.SIGINT) is before
