"""What several tests need: small image folders, a quick run, the command line in this process."""

import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

# Each worker of pytest-xdist has a core of its own, and so have the processes that its tests start: two threads of
# torch that wait for each other on a core that is taken are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
if (_worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

import numpy as np
import pytest
from PIL import Image

from residuum import cli
from tests import warm
from tests.train.runs import each_step, finished, stopped  # noqa: F401 (fixtures of several rooms)


def pytest_collection_modifyitems(items):
    """Lint and types first, then the quick tests, then the slow ones: what fails soonest is known soonest.

    Of the slow ones those that say how many minutes they take come first, the longest before all, so that no worker
    waits for one at the end.
    """

    def place(item):
        slow = item.get_closest_marker("slow")
        rank = 0 if item.path.name == "test_lint.py" else 1 if slow is None else 2
        return rank, -slow.kwargs.get("minutes", 0) if slow else 0

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="session")
def _warm():
    with pytest.MonkeyPatch.context() as patch:
        warm.start_processes_warm(patch)
        yield


def pytest_collection_finish():
    """What is loaded by now stays: the collector need not look at all of torch again and again."""
    gc.collect()
    gc.freeze()


@dataclass
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line in this process: `command("train", "--epochs", 2)`."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["residuum", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def refused(command):
    """Run a command line that must fail as a user's mistake, exit code 2 and no traceback; gives what it said."""

    def run(*args):
        result = command(*args)
        text = " ".join((result.err or result.out).split())
        assert result.code == 2, result
        assert text
        assert "Traceback" not in result.out + result.err
        return text

    return run


def paint(path: Path, side: int, colour: tuple[int, int, int], seed: int) -> None:
    """A noisy image of one colour."""
    noise = np.random.default_rng(seed).integers(0, 40, (side, side, 3))
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)


COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


@pytest.fixture
def image_folder(tmp_path):
    """Make a folder of three colours: `image_folder(side=16, train=8, test=4)`."""

    def make(side=16, train=8, test=4, test_name="test", ending="png"):
        root = tmp_path / "colours"
        for part, count in (("train", train), (test_name, test)):
            for label, (name, colour) in enumerate(COLOURS.items()):
                folder = root / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    paint(folder / f"{i}.{ending}", side, colour, seed=100 * label + i + (part != "train") * 1000)
        return root

    return make
