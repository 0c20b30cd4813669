"""Where time goes: the shares that are reported are the true ones, on a device too, and cost next to nothing."""

import time

import pytest
import torch

from residuum.train import clock as clocks
from residuum.train.clock import Clock, waiting

CPU = torch.device("cpu")


def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("slow", [0.004, 0.012])
def test_the_share_of_waiting_is_that_of_a_loader_of_known_sleep(slow):
    clock, slept = Clock(CPU, {}), []

    def batches():
        for _ in range(15):
            begin = time.perf_counter()
            time.sleep(slow)  # a busy machine makes it longer
            slept.append(time.perf_counter() - begin)
            yield None

    began = None
    for _ in clock.batches(batches()):
        began = began or time.perf_counter()  # the first batch is of the start
        busy(0.003)
        clock.lap("forward")
        busy(0.005)
        clock.lap("backward")
    total = time.perf_counter() - began
    assert waiting(clock.seconds) == pytest.approx(sum(slept[1:]) / total, abs=0.05)
    assert clock.seconds["forward"] >= 15 * 0.003
    assert clock.seconds["backward"] >= 15 * 0.005
    assert clock.seconds["start"] >= slow


def test_every_second_is_in_one_phase():
    began = time.perf_counter()
    clock = Clock(CPU, {})
    for phase in ("forward", "backward", "step", "evaluate", "save", "other"):
        busy(0.002)
        clock.lap(phase)
    assert sum(clock.seconds.values()) == pytest.approx(time.perf_counter() - began, abs=1e-3)


class Device:
    """A device of its own time that works off what it is given, later than the program asks for it."""

    def __init__(self):
        self.now, self.done, self.waits = 0.0, 0, 0
        self.events = []

    def current_stream(self, device):
        return f"stream of {device}"

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        return Stamp(self)


class Stamp:
    def __init__(self, device):
        self.device, self.at = device, None

    def record(self, stream):
        assert stream == "stream of cuda:1"
        self.at = self.device.now

    def synchronize(self):
        self.device.waits += 1

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    return made


def test_a_device_stamps_its_own_time_and_is_waited_for_when_it_is_read_alone(device):
    clock = Clock(torch.device("cuda:1"), {})
    for _ in range(50):
        for phase, seconds in (("data", 1.0), ("forward", 2.0), ("backward", 4.0), ("step", 1.0)):
            device.now += seconds
            clock.lap(phase)
    assert device.waits == 0
    assert clock.seconds == {}
    clock.read()
    assert device.waits == 1
    assert clock.seconds == {"data": 50.0, "forward": 100.0, "backward": 200.0, "step": 50.0}
    assert waiting(clock.seconds) == pytest.approx(1 / 8)


def test_events_are_used_again(device):
    clock = Clock(torch.device("cuda:1"), {})
    for _ in range(3):
        for _ in range(10):
            clock.lap("step")
        clock.read()
    assert len(clock.free) == 10
    assert clock.laps["step"] == 30


def test_what_is_left_counts_steps_and_evaluations():
    clock = Clock(CPU, {})
    clock.total = {"data": 2.0, "forward": 4.0, "backward": 10.0, "step": 3.0, "other": 1.0}
    clock.laps.update({"step": 10})
    assert clock.left(100, 2, 5) == pytest.approx(100 * 2.0 + 2 * 5 * 0.6)  # an evaluation is not known yet
    clock.total |= {"evaluate": 6.0, "save": 2.0}
    clock.laps.update({"evaluate": 2})
    assert clock.left(100, 2, 5) == pytest.approx(100 * 2.0 + 2 * 4.0)


def test_without_steps_there_is_no_share():
    assert waiting({}) == 0.0
    assert Clock(CPU, {}).left(10, 1, 1) == 0.0


def test_a_lap_takes_microseconds():
    clock = Clock(CPU, {})
    began = time.perf_counter()
    for _ in range(10_000):
        clock.lap("step")
    assert (time.perf_counter() - began) / 10_000 < 2e-5  # five in a step of milliseconds


def test_each_phase_has_a_word():
    from typing import get_args

    from residuum.train.bottleneck import _WORDS

    assert tuple(_WORDS) == get_args(clocks.Phase)
