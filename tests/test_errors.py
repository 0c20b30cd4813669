"""Errors: their length, their letters, and the names that they suggest."""

import pytest

from residuum import PRESETS, ConfigError
from residuum.config import ResNetConfig
from residuum.errors import LONGEST, ResiduumError, nearest, quoted

FIELDS = tuple(ResNetConfig().to_dict())


@pytest.mark.parametrize(
    ("word", "known", "first"),
    [
        ("resnet20", PRESETS, ["cifar_resnet20", "resnet200"]),
        ("resnet51", PRESETS, ["resnet50"]),
        ("ResNet-50", PRESETS, ["resnet50"]),
        ("resnext50", PRESETS, ["resnext50_32x4d"]),
        ("widht", FIELDS, ["width"]),
        ("num_class", FIELDS, ["num_classes"]),
        ("classes", FIELDS, ["num_classes"]),
        ("--size", ("--image-size", "--seed"), ["--image-size"]),
        ("--batch", ("--batch-size", "--seed"), ["--batch-size"]),
    ],
)
def test_the_name_that_was_meant_comes_first(word, known, first):
    assert nearest(word, known).startswith(f"; did you mean {', '.join(map(repr, first))}")


@pytest.mark.parametrize(
    ("word", "known"), [("weights", FIELDS), ("vgg16", PRESETS), ("", PRESETS), ("x" * 999, PRESETS)]
)
def test_nothing_is_suggested_where_nothing_is_near(word, known):
    assert nearest(word, known) == ""


def test_a_message_has_at_most_500_printable_characters():
    error = ResiduumError("a\x1b[31m\n\udcff" + "b" * 10**6)
    assert len(str(error)) <= LONGEST
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 10**5000, [10**5000], {"a": "b" * 10**5}, "\x00\x1b]0;t\x07"], ids=range(5)
)
def test_a_quoted_value_is_short_and_printable(value):
    assert len(quoted(value)) < 120
    assert quoted(value).isprintable()


def test_an_error_is_also_of_the_standard_kind():
    assert issubclass(ConfigError, ValueError)
