"""The sentence about a loader that holds up the network: when it comes, what it says, that it comes once."""

import io
import json
import time

import pytest
from tests.train.runs import console, tiny

from residuum.train import Callback, Execution, bottleneck, fit, session
from residuum.train.bottleneck import WaitingForData, held_up, in_words


class Said(Callback):
    def __init__(self):
        self.lines = []

    def say(self, topic, text):
        self.lines.append((topic, text))


ROW = {
    "seconds_data": 6.0, "seconds_forward": 1.0, "seconds_backward": 2.0, "seconds_step": 1.0, "seconds": 10.0,
    "images_per_second": 100.0,
}  # fmt: skip


def test_a_loader_that_holds_up_is_told_once_with_what_it_gives_and_what_could_be_taken():
    said = Said()
    watch = WaitingForData([said], workers=1)
    for _ in range(3):
        watch.epoch(ROW, 10)
    ((topic, text),) = said.lines
    assert topic == "waiting"
    assert "60% of a step is waiting for data: the loader gives 100 images/s, and the network could take 250" in text


@pytest.mark.parametrize("row", [ROW | {"seconds_data": 0.9}, {name: value / 20 for name, value in ROW.items()}])
def test_little_waiting_and_short_runs_are_not_worth_a_word(row):
    said = Said()
    WaitingForData([said], workers=1).epoch(row, 10)
    assert said.lines == []


@pytest.mark.parametrize(
    ("workers", "cores", "says"),
    [
        (2, 8, "try --workers 4 (now 2, for 8 cores), or smaller images, which 'residuum data pack --size' makes"),
        (6, 8, "try --workers 8 (now 6, for 8 cores)"),
        (0, 8, "by turns: the loader gives 167 images/s, and then the network takes 250; try --workers 2"),
        (8, 8, "try smaller images"),
        (None, 8, "these images are in memory"),
    ],
)
def test_what_to_change_depends_on_what_is_left_to_change(workers, cores, says):
    seconds = {"data": 6.0, "forward": 4.0}
    assert says in held_up(seconds, 1000, workers, cores)


def test_a_run_says_and_notes_where_its_time_went(tmp_path, monkeypatch):
    """A loader slowed by a known sleep: the share in the row is the true one."""
    slow, plain, slept = 0.03, session.prepare, []

    class Slowed:
        def __init__(self, loader):
            self.loader, self.skipped, self.left_out_per_epoch = loader, set(), loader.left_out_per_epoch
            self.schedule = loader.schedule

        def __len__(self):
            return len(self.loader)

        def epoch(self, number, start=0):
            for batch in self.loader.epoch(number, start):
                begin = time.perf_counter()
                time.sleep(slow)
                slept.append(time.perf_counter() - begin)
                yield batch

    def prepare(*args):
        from dataclasses import replace

        job = plain(*args)
        return replace(job, train=Slowed(job.train))

    monkeypatch.setattr(session, "prepare", prepare)
    monkeypatch.setattr(bottleneck, "LEAST_SECONDS", 0.01)
    text = io.StringIO()
    fit(tiny(epochs=2), out=tmp_path / "run", execution=Execution(test=False), callbacks=[console(text)])
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    step = sum(row[f"seconds_{phase}"] for phase in ("data", "forward", "backward", "step"))
    assert row["seconds_data"] / step == pytest.approx(sum(slept[5:]) / step, abs=0.05)
    assert step + row.get("seconds_other", 0) <= row["seconds"] + 0.05
    assert row["seconds_evaluate"] > 0
    assert row["seconds_save"] > 0
    (waiting,) = [line for line in text.getvalue().splitlines() if line.startswith("waiting")]
    assert "% of a step is waiting for data" in waiting
    (line,) = [line for line in text.getvalue().splitlines() if line.startswith("time")]
    assert "% waiting for data" in line
    assert "% backward" in line


def test_shares_are_said_in_words():
    assert in_words({"data": 30.0, "forward": 60.0}, {"forward": 30.0}) == "2 min: 25 % waiting for data, 75 % forward"
    assert in_words({}) == "0 s: "
