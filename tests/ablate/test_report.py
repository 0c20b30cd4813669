"""The report: one page that needs nothing else, whose numbers follow from results.csv, and which hides no trouble."""

import csv
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from residuum.ablate.report import sentences, table, write_report
from residuum.ablate.results import Variant
from residuum.report.tables import print_table
from tests.ablate.fakes import cell, shown, study
from tests.ablate.test_factorial import factorial, runs_of

ODD = '<b>&"odd"</b> | `x` $y$_%'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "report"
    write_report(shown(), folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lines(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def words(page):
    """What a reader sees of the page, without the charts and the style."""
    page = re.sub(r"<(svg|style|head)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_is_small(text):
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|@import|url\((?!["']?#)""", text)
    assert len(text) < 3_000_000


def test_a_line_a_cell_in_full_precision(lines):
    found = shown()
    assert len(lines) == len(found.cells) + len(found.older) + len(found.tuned.cells)
    for line, one in zip(lines, found.cells, strict=False):
        assert (line["variant"], int(line["seed"]), line["status"]) == (one.variant, one.seed, one.status)
        for name, value in one.metrics.items():
            assert float(line[name]) == value
    assert [line["code"] for line in lines].count("older") == 1
    assert [float(line["val_accuracy"]) for line in lines if line["code"] == "tuning"][:2] == [0.90, 0.91]


def test_the_numbers_of_the_page_follow_from_the_lines(text, lines):
    """Computed again from results.csv alone: means, spreads, differences, intervals, and each cell's metrics."""
    said = words(text)
    done = [line for line in lines if line["status"] == "done" and line["code"] == "current"]
    by_seed = {}
    for line in done:
        by_seed.setdefault(line["variant"], {})[int(line["seed"])] = 100 * float(line["test_accuracy"])
        cells = (
            f"{line['variant']}, seed {line['seed']} done {line['key'][:8]} {100 * float(line['test_accuracy']):.2f} "
        )
        assert f"{cells} {float(line['test_loss']):.4f} {float(line['seconds']):.1f} ".replace("  ", " ") in said
    for name, mine in by_seed.items():
        assert f"{np.mean(list(mine.values())):.2f} ± {np.std(list(mine.values()), ddof=1):.2f}" in said
        if name != "base":
            gaps = [value - by_seed["base"][seed] for seed, value in mine.items()]
            low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
            assert f"{np.mean(gaps):+.2f}, {low:+.2f} to {high:+.2f}" in said


def test_failures_divergences_and_older_code_are_named_with_their_reason_and_line(text):
    said = words(text)
    assert "lr 10, seed 5 diverged the loss is nan at step 12 residuum ablate study.toml --only lr 10 --seed 5" in said
    assert "lr 10, seed 4 failed out of memory" in said
    assert "base, seed 0 older code" in said
    assert "1 of 6 diverged" in said
    assert "extended after its results had been seen" in said


def test_what_was_tuned_is_shown_with_its_choice_and_its_plot(text):
    said = words(text)
    assert "base optimizer.lr = 0.2 94.50 ± 0.71 chosen" in said
    assert "no SE optimizer.lr = 0.1 93.50 ± 0.71 chosen" in said
    assert "with 5 variants, 2 seeds of their own that the study does not use" in said
    assert "Means at 0.1, 0.2: base 90.5, 94.5; no SE 93.5, 91.5" in text


def test_the_four_files_are_there_and_say_the_same_of_a_variant(folder, text):
    found = next(row for row in table(shown()).rows if row[0] == "no SE")
    mean = found[2].split()[0]
    assert mean in words(text)
    assert mean in (folder / "report.md").read_text(encoding="utf-8")
    assert mean in (folder / "table.tex").read_text(encoding="utf-8")
    assert "seeds = 6\n\n[base]" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_is_as_wide_as_the_terminal_and_shows_every_verdict(width):
    console = Console(width=width, file=StringIO(), force_terminal=False)
    print_table(console, table(shown()))
    said = console.file.getvalue()
    assert max(map(len, said.splitlines())) <= width
    assert said.count("undecided, ~") == 3
    assert "incomplete" in said


def test_a_sentence_for_each_variant_and_each_clear_interaction():
    found = sentences(factorial(runs_of(np.random.default_rng(1), interaction=0.02), margin=0.003))
    assert found[0].startswith("001: same within ±0.3 points; ")
    assert len([one for one in found if one.startswith("A x B: an interaction")]) == 1


@pytest.mark.slow
def test_a_clear_interaction_stands_above_the_variants(tmp_path):
    write_report(factorial(runs_of(np.random.default_rng(1), interaction=0.02)), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index(">Interactions<") < page.index(">Variants<")


def test_a_study_of_which_nothing_is_done_has_a_report(tmp_path):
    write_report(study({"base": [None] * 3, "variant": [None] * 3}), tmp_path)
    assert "0 of 6 cells are done" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "incomplete" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_one_seed_and_one_variant_have_a_report(tmp_path):
    write_report(study({"base": [0.9]}), tmp_path)
    write_report(study({"base": [0.9], "variant": [0.8]}), tmp_path)
    assert "undecided: at least 2 more seeds" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_names_from_outside_stay_text(tmp_path):
    found = study({"base": [0.9] * 3, ODD: [0.8, 0.81, 0.82]}, name=ODD)
    found = replace(found, cells=(*found.cells[:-1], cell(ODD, 2, status="failed", reason=ODD)))
    write_report(found, tmp_path)
    assert "<b>&" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert r"\$y\$\_\%" in (tmp_path / "table.tex").read_text(encoding="utf-8")


@pytest.mark.slow
def test_twenty_variants_have_their_distribution(tmp_path):
    rng = np.random.default_rng(0)
    many = {f"v{i}": rng.normal(0.9, 0.01, 3) for i in range(20)}
    found = study(many, variants=tuple(Variant(name, {}, {}, 100, 100 * i) for i, name in enumerate(many, 1)))
    write_report(found, tmp_path)
    assert ">Distribution<" in (tmp_path / "report.html").read_text(encoding="utf-8")
