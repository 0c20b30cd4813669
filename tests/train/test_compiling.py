"""Compiled training steps compute what others do, and go on after a stop as if there had been none."""

import shutil

import pytest
import torch
from tests.train.runs import StopAfter, tiny

from residuum.errors import ConfigError
from residuum.train.compiling import compiled, need_compiler
from residuum.train.execution import Execution
from residuum.train.session import fit, make_network, resume

SMALL = {"model.depths": (1, 1), "compile": True}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++, which is not here")
def test_a_stop_changes_nothing_in_a_compiled_run_and_its_steps_are_those_of_the_network(tmp_path, each_step):
    recipe = tiny(**SMALL)  # with dropout and dropped branches
    whole = fit(recipe, out=tmp_path / "whole", callbacks=[])
    fit(recipe, out=tmp_path / "stopped", callbacks=[StopAfter(7)])
    ended = resume(tmp_path / "stopped", callbacks=[])
    weights = [(path / "weights.safetensors").read_bytes() for path in (whole.path, ended.path)]
    assert weights[0] == weights[1]

    config = recipe.replace({"model.stochastic_depth": 0.0, "model.dropout": 0.0}).model
    torch.manual_seed(0)
    network, images = make_network(config, torch.device("cpu"), "fp32"), torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        expected, got = network(images), compiled(network)(images)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


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
