"""The runner: failures are named and retried, two parents never run one study, and any end can be gone on from."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from residuum.ablate.cells import collect
from residuum.errors import RunError
from tests.ablate.trainers import ROOT, calls, planned, run_fake


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def go_wrong(plan, **cells):
    (plan.folder / "cells").mkdir(parents=True, exist_ok=True)
    named = {name.replace("_", " "): how for name, how in cells.items()}
    (plan.folder / "wrong.json").write_text(json.dumps(named), encoding="utf-8")


@pytest.mark.slow
def test_cells_that_go_wrong_are_named_others_finish_and_a_second_call_tries_them_once_more(tmp_path):
    plan = planned(tmp_path)
    go_wrong(plan, v1_0="raises", v2_1="killed", v3_2="hangs", v4_3="diverges")
    outcome, said = run_fake(plan)
    text = "\n".join(said)
    assert outcome.finished == 21  # a divergence is a result
    found = {(cell.variant, cell.seed): cell for cell in collect(plan).cells}
    assert sum(cell.status == "done" for cell in found.values()) == 20
    assert {(cell.variants[0], cell.seed) for cell in outcome.failed} == {("v1", 0), ("v2", 1), ("v3", 2)}
    assert found["v1", 0].reason == "ValueError: no such thing"
    assert "SIGKILL" in found["v2", 1].reason
    assert found["v3", 2].reason == "it took longer than 1s"
    assert (found["v4", 3].status, found["v4", 3].reason) == ("diverged", "the loss became nan")
    for name in ("v1, seed 0", "v2, seed 1", "v3, seed 2"):
        assert f"{name}: failed: " in text
    assert text.count("residuum train --recipe") == 3
    for cell in outcome.failed:
        assert (next(c.folder for c in plan.cells if c.key == cell.key) / "recipe.toml").is_file()

    before = len(calls(plan))
    go_wrong(plan, v1_0="raises")
    outcome, _ = run_fake(plan)
    assert sorted(calls(plan)[before:]) == ["v1 0", "v2 1", "v3 2"]
    assert [(cell.variants[0], cell.seed) for cell in outcome.failed] == [("v1", 0)]

    before = len(calls(plan))
    outcome, said = run_fake(plan)
    assert calls(plan)[before:] == []
    assert "v1, seed 0 has failed 2 times and is not tried again: ValueError: no such thing" in said
    assert len(outcome.failed) == 1


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_study_in_a_sentence_and_counts_for_no_cell(tmp_path):
    from residuum.ablate.runner import run

    plan = planned(tmp_path)
    with pytest.raises(RunError, match="a worker cannot be started.*ModuleNotFoundError"):
        run(plan, trainer="no.such:thing")
    assert {cell.status for cell in collect(plan).cells} == {"waiting"}


def test_code_that_changes_under_a_study_ends_it_and_counts_for_no_cell(tmp_path):
    plan = planned(tmp_path, seeds=(0,))
    go_wrong(plan, v1_0="changed")
    with pytest.raises(RunError, match="^the code has changed$"):
        run_fake(plan)
    cells = collect(plan).cells
    assert {cell.status for cell in cells} <= {"waiting", "done"}
    assert next(cell for cell in cells if cell.variant == "v1").status == "waiting"
    go_wrong(plan)
    outcome, _ = run_fake(plan)
    assert (outcome.failed, {cell.status for cell in collect(plan).cells}) == ((), {"done"})


def test_a_cell_may_fork_processes_as_those_that_read_images_do(tmp_path):
    plan = planned(tmp_path, seeds=(0,))
    go_wrong(plan, v0_0="forks")
    outcome, said = run_fake(plan, only=("v0",))
    assert outcome.finished == 1, said


@pytest.mark.slow
def test_variants_can_be_run_alone(tmp_path):
    plan = planned(tmp_path)
    outcome, _ = run_fake(plan, only=("v0", "v2"))
    assert outcome.finished == 8
    assert {call.split()[0] for call in calls(plan)} == {"v0", "v2"}


PARENT = """
import sys
from pathlib import Path
from tests.ablate.trainers import planned, run_fake
from residuum.errors import RunError
plan = planned(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    outcome, said = run_fake(plan)
    print("stopped" if outcome.stopped_by else "worked", outcome.finished)
except RunError as error:
    print("refused", error)
"""


def parent(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_of_two_parents_one_works_and_the_other_is_refused_with_its_process(tmp_path):
    plan = planned(tmp_path)
    go_wrong(plan, v0_0="slow", v1_0="slow", v2_0="slow", v3_0="slow")
    other = parent(tmp_path)
    go(other)
    try:
        mine = f"worked {run_fake(plan)[0].finished}"
    except RunError as error:
        mine = f"refused {error}"
    said = sorted([mine, other.communicate()[0].strip()])
    assert said[1] == "worked 24"
    assert said[0].startswith("refused")
    assert f"by process {os.getpid() if mine == 'worked 24' else other.pid};" in said[0]
    assert len(calls(plan)) == len(set(calls(plan))) == 24


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_whose_parent_is_ended_goes_on_with_what_is_missing(tmp_path, number):
    plan = planned(tmp_path)
    go_wrong(plan, **{f"v{i}_{seed}": "slow" for i in range(6) for seed in range(4)})
    process = parent(tmp_path)
    go(process)
    while len(calls(plan)) < 5:
        time.sleep(0.02)
    os.kill(process.pid, number)
    out = process.communicate()[0]
    assert ("stopped" in out) == (number == signal.SIGTERM)
    (plan.folder / "wrong.json").unlink()
    done = sum(cell.status == "done" for cell in collect(plan).cells)
    assert 3 <= done < 8
    outcome, _ = run_fake(plan)
    assert {cell.status for cell in collect(plan).cells} == {"done"}
    assert outcome.failed == ()
    assert len(calls(plan)) <= 26
