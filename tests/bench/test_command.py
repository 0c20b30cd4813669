"""`residuum bench` as a user calls it."""

import json

import pytest

from residuum.bench.results import Report

QUICK = ("--models", "resnet18", "--size", 32, 32, "--batch-sizes", 2, "--sittings", 2, "--rounds", 3)


@pytest.mark.slow
def test_a_comparison_leaves_a_whole_report_and_can_be_compared_with_itself(command, tmp_path):
    out = tmp_path / "bench"
    result = command(
        "bench", *QUICK, "--tasks", "infer", "--precisions", "fp32", "--contenders", "residuum", "torchvision",
        "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "resnet18 inference, fp32 nchw eager, batch 2 of 32x32" in result.out
    report = Report.load(out / "report.json")
    assert [row.contender for row in report.cells[0].measured()] == ["residuum", "torchvision"]
    assert report.command.startswith("residuum bench --models resnet18")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    again = command("bench", "--compare", out / "report.json", out / "report.json")
    assert again.code == 0
    assert "Nothing got slower" in again.out


def test_lines_are_counted_without_measuring_anything(command):
    result = command("bench", "--lines", "--contenders", "brute_force", "residuum", "torchvision")
    assert result.code == 0
    assert "ResNet-101" in result.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--contenders torchvison", "did you mean 'torchvision'"),
        ("--contenders residuum", "the baseline torchvision does not take part"),
        ("--baseline keras", "there is no contender 'keras'"),
        ("--models resnet51", "did you mean 'resnet50'"),
        ("--rounds 1", "sittings is 3 and rounds 1; an interval of 95 % takes at least 2 sittings and 6 rounds"),
        ("--sittings 1", "sittings is 1 and rounds 2"),
        ("--batch-sizes 0", "must be positive"),
        ("--modes graph", "leave it out"),
        ("--modes fast", "fast"),
        ("--device cuda:99", "there is no device 'cuda:99'"),
        ("--compare none.json none.json", "none.json cannot be read"),
        ("--compare other.json other.json", "is no report"),
        ("--out here --precisions fp32", "here exists already"),
        ("--out /proc/x/y --precisions fp32", "cannot be made"),
    ],
)
def test_mistakes_are_answered_in_one_sentence_and_leave_nothing(line, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert says in refused("bench", *line.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "other.json"]
