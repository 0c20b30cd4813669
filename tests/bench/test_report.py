"""A comparison as people see it: no figure is missing, and noise is called noise everywhere."""

import dataclasses
import io

import pytest
from rich.console import Console

from residuum.bench.report import as_markdown, glance, page, print_report, save_pages, tables
from residuum.bench.results import Comparison, Row
from residuum.report.page import html
from tests.bench.comparisons import comparison, times, workload


def shown(found, width=140):
    console = Console(width=width, file=io.StringIO())
    print_report(console, found)
    return console.file.getvalue()


@pytest.mark.slow
def test_every_way_to_show_a_comparison_holds_all_figures_and_says_what_was_left_out():
    made = comparison(workload("resnet18 training, fp32"), workload("resnet18 training, bf16", ours=0.7))
    for text in (shown(made), as_markdown(made), html(page(made))):
        for figure in ("16.", "faster", "slower", "timm is left out: it has no resnet18", "300", "1.2", "120 %"):
            assert figure in text, figure
    assert len(list(tables(made))) == 3


def test_at_a_glance_says_noise_where_the_interval_holds_one_whatever_the_percent():
    noisy = workload(ours=1.0, noise=0.5, seed=1)
    value = glance(comparison(noisy)).rows[0][1]
    assert noisy.ratio(noisy.row("residuum"), "torchvision").value < 0.8
    assert str(value).startswith("noise ±")
    assert value.verdict == "noise"
    assert str(glance(comparison(workload())).rows[0][1]) == "120 %"


def test_at_a_glance_has_a_row_for_each_workload_with_what_tells_it_from_the_others():
    table = glance(comparison(workload("a"), workload("b", task="infer"), workload("c", batch_size=1)))
    assert table.title == "At a glance: resnet18, fp32, nchw, eager, 224x224"
    assert [row[0] for row in table.rows] == ["training, batch 8", "inference, batch 8", "training, batch 1"]


def test_another_network_is_called_so():
    found = workload()
    mine = Row("mine", times(0.3, 5), "fp32", flops=5 * 10**10, peak=50 << 20)
    text = shown(comparison(dataclasses.replace(found, rows=(*found.rows, mine))))
    assert "mine is another network: its step is 50.0 GFLOP." in " ".join(text.split())


def test_what_one_repetition_measured_is_shown_without_a_verdict():
    made = comparison(workload(repetitions=1))
    for text in (shown(made), as_markdown(made), html(page(made))):
        assert "One repetition is done" in " ".join(text.split())
        assert "faster" not in text


@pytest.mark.slow
def test_bytes_that_are_no_text_do_not_keep_the_pages_from_being_written(tmp_path):
    made = dataclasses.replace(comparison(workload("caf\udce9")), command="residuum bench --out caf\udce9")
    save_pages(made, tmp_path)
    made.save(tmp_path / "report.json")
    assert Comparison.load(tmp_path / "report.json") == made
    assert "caf\\udce9" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_comparison_without_results_has_its_pages():
    assert "2026-01-02" in as_markdown(comparison())
    assert "<h1>" in html(page(comparison()))


@pytest.mark.slow
def test_cards_count_in_how_many_workloads_each_is_faster_or_slower():
    found = page(comparison(workload("a"), workload("b", ours=0.7), workload("c", ours=0.6, noise=0.1)))
    [card] = found.cards
    assert (card.label, card.value) == ("residuum", "1 faster, 1 slower, 1 within noise")
    assert card.verdict is None
