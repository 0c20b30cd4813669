"""Broken weights files of a fixed seed, and of a new one."""

import secrets

import pytest

from tests.fuzz.weights import FINE, fuzz


def check(count, seed):
    counts, faults = fuzz(count, seed)
    shown = "\n".join(faults)
    assert not faults, f"python -m tests.fuzz.weights --count {count} --seed {seed}\n{shown}"
    assert all(counts[kind] > 0 for kind in FINE)
    assert sum(counts.values()) == 5 * count


@pytest.mark.slow
def test_broken_weights_end_right_or_with_one_sentence():
    check(40, seed=1)


@pytest.mark.slow
def test_broken_weights_of_a_new_seed_end_right_or_with_one_sentence():
    check(100, seed=secrets.randbelow(10**9))
