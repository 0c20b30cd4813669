"""Odd configs, recipes and command lines end right or in one sentence; `python -m tests.fuzz.lines` tries more."""

import random

import pytest

from tests.fuzz.lines import ENCODINGS, in_child, outcomes


@pytest.mark.slow
def test_odd_configs_and_lines_end_right_or_in_a_sentence():
    found = list(outcomes(80, 0))
    assert [f"{o.case}\n{o.says}" for o in found if o.kind == "fault"] == []
    assert sum(o.kind == "right" for o in found) >= 8


@pytest.mark.slow
def test_odd_configs_and_lines_of_a_new_seed_end_right_or_in_a_sentence():
    found = outcomes(400, random.SystemRandom().randrange(2**32))
    assert [f"{o.case}\n{o.says}" for o in found if o.kind == "fault"] == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_of_any_bytes_are_refused_on_any_console(encoding):
    assert "residuum presets" in in_child([b"summary", b"\xff\xfe\x1b[31m[red]\xe2\x82\xac"], encoding)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        [b"inspect", b"~nobody/x"],
        [b"predict", b"x/" * 2500, b"\xff.png"],
        [b"train", b"--data", b"\xff\x07"],
        [b"train", b"--recipe", b"/dev/full"],
        [b"plan", b"resnet18", b"--memory", b"9" * 5000],
        [b"summary", b"--width", b"1" + b"0" * 400, b"resnet18"],
    ],
    ids=["home of a stranger", "long path", "bytes", "endless file", "digits", "width"],
)
def test_a_process_of_its_own_ends_alike(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_child(line, "ascii")
