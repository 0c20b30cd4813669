"""Numbers as people write them."""

import pytest

from residuum.units import counted


@pytest.mark.parametrize(
    ("number", "thing", "text"),
    [
        (1, "epoch", "1 epoch"),
        (0, "image", "0 images"),
        (1797, "image", "1,797 images"),
        (2, "class", "2 classes"),
        (1, "class", "1 class"),
        (2, "process", "2 processes"),
        (1.0, "epoch", "1 epoch"),
        (2.5, "epoch", "2.5 epochs"),
    ],
)
def test_a_thing_is_in_the_plural_but_for_one(number, thing, text):
    assert counted(number, thing) == text
