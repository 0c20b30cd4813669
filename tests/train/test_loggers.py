"""What a console is told: lines in a pipe, at least one a minute, and nothing of it read as markup."""

import io
import re

import pytest
from rich.console import Console
from tests.train.runs import console, said

from residuum.train import ConsoleLogger, loggers
from residuum.train.loggers import Beginning, Snapshot, duration, numbers_of


def snapshot(step=3, **more):
    values = {"epoch": 0, "epochs": 2, "step": step, "steps": 10, "loss": 1.5, "accuracy": 0.25} | {
        "images_per_second": 100.0, "seconds_left": 90.0, "images": 30, "val_accuracy": 0.5,
        "seconds": {"data": 1.0, "forward": 3.0},
    }  # fmt: skip
    return Snapshot(**values | more)


@pytest.fixture
def clock(monkeypatch):
    """The time, which goes on when it is told to."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(loggers, "time", made)
    return made


def test_in_a_pipe_a_line_comes_at_least_once_a_minute(clock):
    text = io.StringIO()
    logger = console(text)
    logger.begin(Beginning(2, 10, 0, 0, {"data": "x"}))
    for second in range(0, 180, 5):
        clock.now = float(second)
        logger.look(snapshot())
    assert said(text)[0] == "data       x"
    line = "epoch 1/2, step 3 of 10: loss 1.500, 25.0 %, val 50.0 %, 100 images/s, data 25 %, 2 min left"
    assert said(text)[1:] == [line] * 2


def test_before_the_first_evaluation_there_is_no_val():
    assert "val" not in " ".join(numbers_of(snapshot(val_accuracy=None)))


BUSY = {
    "epoch": 88, "epochs": 90, "step": 4567, "steps": 5004, "loss": 2.3456, "images_per_second": 12345.0,
    "seconds_left": 3 * 3600 + 20 * 60, "val_accuracy": 0.7612,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_says_it_all_in_one_line(width):
    text = io.StringIO()
    logger = ConsoleLogger(Console(file=text, force_terminal=True, width=width, color_system=None))
    logger.begin(Beginning(90, 5004, 88, 0, {}))
    logger.look(snapshot(**BUSY))
    logger.bar.refresh()
    logger.end()
    shown = [line for line in re.split(r"[\r\n]|\x1b\[\d*[A-Za-z]", text.getvalue()) if "val" in line]
    assert shown
    assert all(len(line) <= width for line in shown)
    assert "…" not in shown[-1]
    for word in ("89/90", "loss 2.3", "val 76.1 %", "12,345", "data 25 %", "3 h 20 min"):
        assert word in shown[-1], word


def test_a_long_evaluation_says_how_far_it_is(clock):
    text = io.StringIO()
    logger = console(text)
    clock.now = 61.0
    logger.evaluating("val", 3, 40)
    assert said(text) == ["looking at val, batch 3 of 40"]


def test_an_epoch_line_has_val_where_there_is_one():
    text = io.StringIO()
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "images_per_second": 1234.5}
    console(text).epoch(row, 10)
    console(text).epoch(row | {"val_loss": 2.0, "val_accuracy": 0.25}, 10)
    assert said(text) == [
        "epoch  1/10  train loss 1.000, 50.0 %  1,234 images/s",
        "epoch  1/10  train loss 1.000, 50.0 %  val loss 2.000, 25.0 %  1,234 images/s",
    ]


def test_on_a_terminal_there_is_a_bar_that_goes_away():
    text = io.StringIO()
    logger = ConsoleLogger(Console(file=text, force_terminal=True, width=150))
    logger.begin(Beginning(2, 10, 0, 0, {}))
    logger.look(snapshot())
    assert logger.bar is not None
    assert logger.bar.tasks[0].completed == 3
    logger.end()
    assert logger.bar is None


def test_names_with_brackets_and_control_characters_are_shown_and_not_obeyed():
    text = io.StringIO()
    console(text).say("data", "[red]a[/red]\x1b[2J\nb.png")
    assert said(text) == [r"data       [red]a[/red]\x1b[2J\nb.png"]


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (61, "1 min"), (3 * 3600 + 20 * 60, "3 h 20 min")])
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words
