"""What a comparison found: figures, JSON, two reports side by side, and how they are shown."""

import dataclasses
import json
import re

import numpy as np
import pytest
from benchmarks.code_size.changes import CHANGES
from benchmarks.code_size.lines import LineCount
from rich.console import Console

from residuum.bench.report import _frontier_chart, comparison, in_words, markdown, page, print_report, sheets
from residuum.bench.results import CellResult, Lines, Report, Row, compare
from residuum.errors import BenchError

SETTINGS = {"model": "resnet18", "task": "train", "precision": "fp32", "layout": "nchw", "mode": "eager", "batch": 8}


def times(seconds, seed):
    noise = 0.01 * np.random.default_rng(seed).standard_normal((3, 3))
    return tuple(tuple(map(float, sitting)) for sitting in seconds * np.exp(noise))


def cell(name="resnet18 training", ours=0.5, machine=0.01, seed=0):
    rows = (
        Row("residuum", times(ours, seed), "fp32", 100 << 20, 300 << 20),
        Row("torchvision", times(0.6, seed + 1), "fp32", 100 << 20, 310 << 20),
        Row("timm", (), error="timm has no resnet18"),
    )
    return CellResult(name, SETTINGS, 10**11, rows, {"fp32": times(machine, seed + 2)}, 2 * 10**9)


def report(*cells):
    changes = {name: 1 for name, _ in CHANGES}
    lines = tuple(Lines(LineCount(name, 10, 20, 30, 40, 2), changes) for name in ("residuum", "torchvision"))
    return Report({"cpu": "A <fast> one"}, "residuum bench", "2026-01-02", "torchvision", cells, lines)


def test_figures_follow_from_the_times():
    found = dataclasses.replace(
        cell(), rows=(Row("residuum", ((0.5, 0.4), (0.6,)), "fp32"),), references={"fp32": ((0.01, 0.02, 0.01),)}
    )
    row = found.rows[0]
    assert row.step == 0.5
    assert found.speed(row) == 16  # 8 images in half a second
    assert found.limit("fp32") == 2e11
    assert found.share(row) == 1  # 1e11 FLOP in half a second
    assert found.ratio(row, "torchvision") is None


def test_a_report_comes_back_equal_from_json(tmp_path):
    made = report(cell(), cell("resnet18 inference"))
    made.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no report"),
        ("[]", "is no report"),
        ('{"residuum bench": 99}', "another version"),
        ('{"residuum bench": 1, "cells": [{}], "lines": []}', "is no report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(text, says, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=says):
        Report.load(path)
    with pytest.raises(BenchError, match="cannot be read"):
        Report.load(tmp_path / "none.json")


def test_comparing_tells_slower_from_noise_and_from_a_slower_machine():
    first = report(cell("a"), cell("b"), cell("c"), cell("d"))
    second = report(
        cell("a", ours=0.55, seed=10),
        cell("b", seed=20),
        cell("c", ours=0.55, machine=0.011, seed=30),
        cell("d", ours=0.4, seed=40),
    )
    found = {(d.cell, d.contender): d for d in compare(first, second)}
    assert len(found) == 8  # timm has no times
    assert found["a", "residuum"].verdict == "slower"
    assert found["a", "residuum"].ratio.value == pytest.approx(0.5 / 0.55, rel=0.02)
    assert found["b", "residuum"].verdict.startswith("noise")
    assert found["c", "residuum"].verdict == "slower, and so is the machine"
    assert found["d", "residuum"].verdict == "faster"
    words = in_words(list(found.values()))
    assert words.startswith("Slower by more than noise: residuum in a (-")
    assert "residuum in c" not in words
    assert "Nothing got slower" in in_words([found["b", "residuum"]])
    assert len(comparison(list(found.values())).rows) == 8


def test_reports_without_anything_in_common_are_not_compared():
    with pytest.raises(BenchError, match="no cell and contender in common"):
        list(compare(report(cell("a")), report(cell("b"))))


def test_every_way_to_show_a_report_holds_all_figures_and_says_what_was_left_out():
    made = report(cell("resnet18 training, fp32"), cell("resnet18 training, bf16", ours=0.7))
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_report(console, made)
    texts = console.export_text(), markdown(made), page(made)
    for text in texts:
        for figure in ("16.", "faster", "slower", "timm has no resnet18", "300", "checkpointing", "1.2"):
            assert figure in text, figure
    assert len(list(sheets(made))) == 5


def test_the_page_needs_nothing_else_and_is_not_fooled_by_names():
    text = page(report(cell()))
    assert text.count("<svg") == 3
    assert not re.search(r'(src|href)="http', text)
    assert "A &lt;fast&gt; one" in text


def test_the_page_of_a_report_of_lines_alone_has_its_chart():
    assert page(report()).count("<svg") == 1


def test_the_points_of_speed_against_memory_lie_within_their_panel():
    for axes in _frontier_chart(report(cell())).axes:
        right, top = axes.get_xlim()[1], axes.get_ylim()[1]
        for points in axes.collections:
            [(x, y)] = points.get_offsets()
            assert 0.2 * right < x < right
            assert 0.2 * top < y < top


def test_the_json_is_plain():
    assert json.loads(report(cell()).to_json())["cells"][0]["rows"][0]["contender"] == "residuum"
