"""Compiled training steps compute what others do, and go on after a stop as if there had been none."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.train.runs import tiny

from residuum.errors import ConfigError
from residuum.train.compiling import need_compiler
from residuum.train.execution import Execution
from residuum.train.session import fit

ROOT = Path(__file__).parents[2]
SMALL = {"model.depths": (1, 1), "compile": True}


# Run in a process of its own: other libraries that tests have loaded bring threads that compiled code may not meet.
PROGRAM = """
import pathlib, sys, torch
from residuum.train import loop
from residuum.train.compiling import compiled
from residuum.train.session import fit, make_network, resume
from tests.train.runs import StopAfter, tiny

loop.LOOK_EVERY = 0.0
folder = pathlib.Path(sys.argv[1])
recipe = tiny(**{"model.depths": (1, 1), "compile": True})  # with dropout and dropped branches
whole = fit(recipe, out=folder / "whole", callbacks=[])
fit(recipe, out=folder / "stopped", callbacks=[StopAfter(7)])
ended = resume(folder / "stopped", callbacks=[])
weights = [(path / "weights.safetensors").read_bytes() for path in (whole.path, ended.path)]
assert weights[0] == weights[1]

config = recipe.replace({"model.stochastic_depth": 0.0, "model.dropout": 0.0}).model
torch.manual_seed(0)
network, images = make_network(config, torch.device("cpu"), "fp32"), torch.randn(16, 1, 8, 8)
with torch.no_grad():
    expected, got = network(images), compiled(network)(images)
assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
print("alike")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++, which is not here")
def test_a_stop_changes_nothing_in_a_compiled_run_and_its_steps_are_those_of_the_network(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout.endswith("alike\n"), ended.stderr


def test_a_machine_without_a_compiler_is_told_before_the_run(tmp_path, monkeypatch):
    def broken(function):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: none found")

    need_compiler.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match="cannot be compiled here: 'InvalidCxxCompiler: none found'; .* --compile"):
        fit(tiny(**SMALL), out=tmp_path / "run", callbacks=[])
    need_compiler.cache_clear()
    assert not (tmp_path / "run").exists()


def test_compiled_steps_leave_recomputation_to_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr("residuum.train.session.need_compiler", lambda device: None)
    with pytest.raises(ConfigError, match="leave out --memory or --compile"):
        fit(tiny(**SMALL), out=tmp_path / "run", callbacks=[], execution=Execution(memory="1GB"))
