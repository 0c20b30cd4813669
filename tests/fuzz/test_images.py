"""Broken image files end right or in one sentence; `python -m tests.fuzz.images` tries more."""

import random

import pytest

from tests.fuzz.images import OFTEN, outcomes


def check(count, seed):
    found = list(outcomes(count, seed))
    faults = [f"{' '.join(o.case.how)} {o.case.name}\n{o.says}" for o in found if o.kind == "fault"]
    assert faults == [], f"python -m tests.fuzz.images --count {count} --seed {seed}"
    assert len(found) == count
    return found


@pytest.mark.slow
def test_broken_images_end_right_or_in_a_sentence():
    found = check(80, 0)
    for form in OFTEN:
        assert {o.kind for o in found if o.case.how[0] == form} == {"right", "refused"}


@pytest.mark.slow
def test_broken_images_of_a_new_seed_end_right_or_in_a_sentence():
    check(150, random.SystemRandom().randrange(2**32))
