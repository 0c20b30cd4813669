"""What a comparison found: figures, JSON, two of them side by side."""

import dataclasses
import json

import pytest

from residuum.bench.report import difference_table, in_words
from residuum.bench.results import Comparison, Row, compare
from residuum.errors import BenchError
from tests.bench.comparisons import comparison, workload


def test_figures_follow_from_the_times():
    found = dataclasses.replace(
        workload(), rows=(Row("residuum", ((0.5, 0.4), (0.6,)), "fp32"),), references={"fp32": ((0.01, 0.02, 0.01),)}
    )
    row = found.rows[0]
    assert row.step == 0.5
    assert found.speed(row) == 16  # 8 images in half a second
    assert found.limit("fp32") == 2e11
    assert found.share(row) == 1  # 1e11 FLOP in half a second
    assert found.share(dataclasses.replace(row, flops=5 * 10**10)) == 0.5
    assert found.ratio(row, "torchvision") is None


def test_one_repetition_has_figures_but_no_ratio():
    found = workload(repetitions=1)
    assert found.speed(found.row("residuum")) == pytest.approx(16, rel=0.05)
    assert found.ratio(found.row("residuum"), "torchvision") is None


def test_a_comparison_comes_back_equal_from_json(tmp_path):
    made = comparison(workload(), workload("resnet18 inference"))
    made.save(tmp_path / "report.json")
    assert Comparison.load(tmp_path / "report.json") == made


def broken(**changes):
    values = json.loads(comparison(workload()).to_json())
    row = values["workloads"][0]["rows"][0]
    row.update(changes)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no report"),
        ("[]", "is no report"),
        ('{"residuum bench": 99}', "another version"),
        ('{"residuum bench": 2, "workloads": [{}]}', "is no report"),
        (broken(times=[[-1.0], [2.0], [1.0]]), "is no report"),
        (broken(times=[[float("nan")], [2.0], [1.0]]), "is no report"),
        (broken(times=[[1.0], [2.0]]), "is no report"),
        (broken(times="often"), "is no report"),
        (broken(times=[[]]), "is no report"),
        (broken(precision="fp8"), "is no report"),
        (broken(contender=3), "is no report"),
        (broken(peak="much"), "is no report"),
        (broken(more=1), "is no report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(text, says, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=says):
        Comparison.load(path)
    with pytest.raises(BenchError, match="cannot be read"):
        Comparison.load(tmp_path / "none.json")


def test_comparing_tells_slower_from_noise_and_from_a_slower_machine():
    first = comparison(workload("a"), workload("b"), workload("c"), workload("d"))
    second = comparison(
        workload("a", ours=0.55, seed=10),
        workload("b", seed=20),
        workload("c", ours=0.55, machine=0.011, seed=30),
        workload("d", ours=0.4, seed=40),
    )
    found = {(d.workload, d.contender): d for d in compare(first, second)}
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
    assert len(difference_table(list(found.values())).rows) == 8


def test_comparisons_without_anything_in_common_are_refused():
    for other in (comparison(workload("b")), comparison(workload("a", repetitions=1))):
        with pytest.raises(BenchError, match="no workload and contender in common"):
            list(compare(comparison(workload("a")), other))
