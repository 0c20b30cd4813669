"""Studies on many machines: each cell once, whoever is killed, and nothing that only looks as if it were shared."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from residuum.ablate.cells import collect
from residuum.ablate.runner import run
from residuum.ablate.shared import Storage
from residuum.errors import ConfigError, RunError
from tests.ablate.postgres import postgres
from tests.ablate.trainers import FAKE, PATIENT, ROOT, begun, calls, planned

pytest.importorskip("optuna")
pytest.importorskip("psycopg")

PARENT = """
import sys
from pathlib import Path
from tests.ablate.trainers import PATIENT, planned
from residuum.ablate.runner import run
from residuum.ablate.shared import Storage
plan = planned(Path(sys.argv[1]), PATIENT, seeds=tuple(range(4)))
run(plan, trainer="tests.ablate.trainers:watchful", storage=Storage(sys.argv[2], beat=0.3, stale=4))
"""


@pytest.fixture(scope="module")
def server():
    with postgres() as address:
        yield address


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("sqlite:///study.db", "SQLite file, which several machines cannot share"),
        ("mysql://a@b/c", "begins with 'mysql'; it must be postgresql://"),
        ("study.db", "it must be postgresql://"),
    ],
)
def test_only_postgresql_is_taken(address, said):
    with pytest.raises(ConfigError) as error:
        Storage(address)
    assert said in str(error.value)


def test_a_database_that_does_not_answer_is_a_sentence_without_the_password(tmp_path):
    with pytest.raises(RunError, match="the database of --storage does not answer") as error:
        run(planned(tmp_path), trainer=FAKE, storage=Storage("postgresql://me:secret@127.0.0.1:1/none"))
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_one_parent_runs_all_and_the_next_finds_nothing_to_do(server, tmp_path):
    plan = planned(tmp_path, seeds=(0, 1))
    assert run(plan, trainer=FAKE, storage=Storage(server)).finished == 12
    assert run(plan, trainer=FAKE, storage=Storage(server)).finished == 0
    assert len(calls(plan)) == 12
    with pytest.raises(RunError, match="give another name or --out"):
        run(planned(tmp_path, seeds=(0, 1), name="other"), trainer=FAKE, storage=Storage(server))


@pytest.mark.slow
def test_three_parents_that_are_killed_at_random_finish_each_cell_once(server, tmp_path):
    study = tmp_path / "study"
    plan, chance, gate = planned(study, PATIENT, seeds=tuple(range(4))), random.Random(0), tmp_path / "gate.txt"
    gate.write_text("6")  # cells wait at it until somebody was killed: a quick machine is not done before that
    line = [sys.executable, "-c", PARENT, str(study), server]

    def begin():
        return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)

    parents, kills, until = [begin() for _ in range(3)], 0, time.monotonic() + 240
    while any(one.poll() in (None, -signal.SIGKILL) for one in parents) and time.monotonic() < until:
        time.sleep(0.05)
        parents = [begin() if one.poll() == -signal.SIGKILL else one for one in parents]
        running = [one for one in parents if one.poll() is None]
        if kills < 3 and running and begun(study) > (allowed := int(gate.read_text())):
            gate.write_text(str(allowed + 6) if kills < 2 else "1000")
            time.sleep(chance.uniform(0, 0.5))
            victim = chance.choice(running)
            workers = [child.pid for child in psutil.Process(victim.pid).children()]
            for process in chance.choice([[victim.pid], workers, [victim.pid, *workers]]):
                os.kill(process, signal.SIGKILL)
            kills += 1
    assert [one.poll() for one in parents] == [0, 0, 0]
    assert kills == 3
    assert {cell.status for cell in collect(plan).cells} == {"done"}
    noted = Counter(line.split()[0] for line in (study / "noted.txt").read_text().splitlines())
    assert noted["again"] == noted["double"] == 0
    assert 24 <= noted["begin"] <= 24 + 2 * 3  # a parent has two workers
