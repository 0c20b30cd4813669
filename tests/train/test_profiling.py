"""A profile of some steps: a trace, a table, and the very weights of a run without one."""

import gzip
import io
import json

import pytest
from tests.train.runs import console, said, same, tiny

from residuum.train import fit


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    text = io.StringIO()
    path = tmp_path_factory.mktemp("profiled") / "run"
    fit(tiny(), out=path, callbacks=[console(text)], profile=3)
    return path, said(text)


def test_the_weights_are_those_of_a_run_without_it(profiled, finished):
    assert same(profiled[0], finished.path)


def test_the_trace_holds_the_steps_after_warm_up(profiled):
    trace = json.loads(gzip.decompress((profiled[0] / "profile.json.gz").read_bytes()))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert len([name for name in names if name.startswith("Optimizer.step")]) == 3


def test_the_dearest_operations_are_told_and_all_are_in_the_table(profiled):
    path, lines = profiled
    (told,) = [line for line in lines if line.startswith("profile")]
    assert "3 steps" in told
    table = (path / "profile.txt").read_text().splitlines()
    assert table[0].split() == ["share", "ms", "a", "step", "calls", "a", "step", "operation"]
    assert any("convolution" in line for line in table[1:9])
    shares = [float(line.split("%")[0]) for line in table[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert [line.strip() for line in lines[lines.index(told) + 1 :]][:9] == [line.strip() for line in table[:9]]


@pytest.mark.slow
def test_a_run_that_ends_before_has_a_profile_of_what_there_was(tmp_path):
    text = io.StringIO()
    fit(tiny(epochs=2), out=tmp_path / "run", callbacks=[console(text)], profile=1000)
    assert "profile    5 steps" in text.getvalue()
