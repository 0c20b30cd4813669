"""Broken datasets end right or in one sentence; `python -m tests.fuzz.datasets` tries more."""

import random

import pytest

from tests.fuzz.datasets import KINDS, outcomes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path))


def check(count, seed):
    found = list(outcomes(count, seed))
    faults = [f"{o.kind} {o.number}\n{o.says}" for o in found if o.ending == "fault"]
    assert faults == [], f"python -m tests.fuzz.datasets --count {count} --seed {seed}"
    assert len(found) == count
    return found


def test_broken_datasets_end_right_or_in_a_sentence():
    found = check(120, 0)
    for kind in KINDS[:-1]:
        assert "refused" in {o.ending for o in found if o.kind == kind}


@pytest.mark.slow
def test_broken_datasets_of_a_new_seed_end_right_or_in_a_sentence():
    check(300, random.SystemRandom().randrange(2**32))
