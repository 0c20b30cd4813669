"""Runs that several tests look at, and how to make them: a tiny recipe, a signal after so many steps."""

import io
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from residuum.train import Callback, ConsoleLogger, Recipe, Result, fit, loop


def tiny(data="digits", **changes):
    """A recipe of a second, with everything that is random in it; five steps an epoch on the digits."""
    fields = {"model.width": 0.25, "model.stochastic_depth": 0.2, "model.dropout": 0.1, "precision": "fp32"}
    return Recipe.default(str(data)).replace(fields | {"epochs": 2, "batch_size": 256} | changes)


def console(text):
    """A logger that writes to `text` as to a pipe."""
    return ConsoleLogger(Console(file=text, width=500))


class StopAfter(Callback):
    """Sends the process a signal after so many steps; needs the fixture `each_step`."""

    def __init__(self, steps, number=signal.SIGTERM):
        self.left, self.number = steps, number

    def look(self, snapshot):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Finished:
    """A finished run and what the console said."""

    recipe: Recipe
    result: Result
    out: str

    @property
    def path(self) -> Path:
        return self.result.path


def same(one, two):
    """Whether two runs have the very same weights."""
    a, b = (load_file(Path(run) / "weights.safetensors") for run in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def said(text: io.StringIO) -> list[str]:
    """The lines that were said."""
    return text.getvalue().splitlines()


def halted(recipe, folder, after):
    """A run that is sent a signal after so many steps, in a process of its own."""
    loop.LOOK_EVERY = 0.0
    return fit(recipe, out=folder, callbacks=[StopAfter(after)])


def assert_near(one, other):
    """Two states have the same tensors, but for the rounding of sums."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = value.double().abs().max().clamp_min(1e-30)
        assert (value.double() - other[name].double()).abs().max() / scale < 1e-5, name


@pytest.fixture
def each_step(monkeypatch):
    """The loop tells its callbacks of every step."""
    monkeypatch.setattr(loop, "LOOK_EVERY", 0.0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The tiny recipe, trained to its end. Not to be changed: copy the folder."""
    text, recipe = io.StringIO(), tiny()
    result = fit(recipe, out=tmp_path_factory.mktemp("runs") / "finished", callbacks=[console(text)])
    return Finished(recipe, result, text.getvalue())


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The tiny recipe, stopped after seven steps, the second of its second epoch. Not to be changed."""
    text, recipe = io.StringIO(), tiny()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOOK_EVERY", 0.0)
        callbacks = [console(text), StopAfter(7)]
        result = fit(recipe, out=tmp_path_factory.mktemp("runs") / "stopped", callbacks=callbacks)
    return Finished(recipe, result, text.getvalue())
