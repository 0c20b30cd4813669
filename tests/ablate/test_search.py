"""Search: it finds what is good, goes on where it was, and calls itself no evidence."""

import json
import math

import pytest

from residuum.ablate.search import Range, Search, lay_out_search, ranked, read_range, run_search, write_search
from residuum.ablate.study import Running, Study
from residuum.errors import ConfigError, RunError
from tests.ablate.trainers import FAKE, ROOT, calls

pytest.importorskip("optuna")
LR = read_range("lr=log(0.01,1)")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def search(trials, *ranges, **given):
    settings = {"running": Running(threads=1), "base": {"loss.label_smoothing": 0.1}} | given
    return Search("lr", settings.pop("base"), ranges or (LR,), trials, **settings)


def test_ranges_are_read_with_short_names():
    assert read_range("lr = log(1e-2, 1)".replace(" = ", "=")) == Range("optimizer.lr", "log", 0.01, 1.0)
    assert read_range("model.dropout=uniform(0,0.5)").at(0.5) == 0.25
    assert [read_range("epochs=int(3,5)").at(share) for share in (0, 0.5, 0.99)] == [3, 4, 5]
    assert read_range("flip=none,random").choices == ("none", "random")
    assert LR.at(0.5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("lr", "it must be FIELD=log(LOW,HIGH)"),
        ("lr=log(0,1)", "two numbers above 0"),
        ("lr=log(1,0.1)", "the smaller one first"),
        ("lr=normal(0,1)", "two values or more"),
        ("lr=0.1", "two values or more"),
        ("learning=log(0.1,1)", "is not a field of a recipe"),
        ("epochs=int(1,x)", "int takes two numbers"),
    ],
)
def test_a_wrong_range_is_refused_in_a_sentence(words, said):
    with pytest.raises(ConfigError) as error:
        read_range(words)
    assert said in str(error.value)


def test_a_range_whose_end_no_recipe_can_have_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="with model.dropout = "):
        lay_out_search(search(5, read_range("model.dropout=uniform(0,3)")), tmp_path / "new")
    with pytest.raises(ConfigError, match="holds out no images"):
        lay_out_search(search(5, base={"data.holdout": 0}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_search_finds_the_best_value_and_goes_on_where_it_was(tmp_path):
    first = search(6)
    trials, outcome = run_search(lay_out_search(first, tmp_path), first, trainer=FAKE)
    assert outcome.finished == len(trials) == 6
    before = len(calls(lay_out_search(first, tmp_path)))
    longer = search(25)
    trials, outcome = run_search(lay_out_search(longer, tmp_path), longer, trainer=FAKE)
    assert (outcome.finished, before) == (19, 6)
    values = [trial.values["optimizer.lr"] for trial in trials]
    assert len(set(values)) == 25
    # the stand-in is best at 0.3; the later half of the trials is nearer to it than the random ones
    assert abs(math.log(ranked(longer, trials)[0].values["optimizer.lr"] / 0.3)) < 0.15
    write_search(longer, trials, tmp_path, {"torch": "x"})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Search, not evidence" in text
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 26
    listing = text[text.index("design = ") :].split("<")[0].replace("&#34;", '"')
    confirming = Study.from_toml(listing)
    assert [variant.name for variant in confirming.variants] == ["before", "found"]
    assert "test_accuracy" not in next(tmp_path.glob("cells/*/metrics.jsonl")).read_text()

    with pytest.raises(RunError, match="had other ranges"):
        run_search(
            lay_out_search(search(9, read_range("lr=log(0.5,1)")), tmp_path), search(9, read_range("lr=log(0.5,1)"))
        )


@pytest.mark.slow
def test_a_trial_that_diverges_is_the_worst_and_one_that_fails_is_named(tmp_path):
    one = search(12, seeds=1)
    plan = lay_out_search(one, tmp_path)
    (tmp_path / "cells").mkdir()
    seed = plan.study.question.seeds[0]
    (tmp_path / "wrong.json").write_text(json.dumps({f"trial 0 {seed}": "diverges", f"trial 1 {seed}": "raises"}))
    trials, outcome = run_search(plan, one, trainer=FAKE)
    assert [trial.status for trial in trials[:3]] == ["diverged", "failed", "done"]
    assert trials[0].value == 0.0
    assert [cell.name for cell in outcome.failed] == [f"trial 1, seed {seed}"]


@pytest.mark.slow
def test_quasirandom_trials_fill_the_range_evenly(tmp_path):
    one = search(16, sampler="qmc")
    trials, _ = run_search(lay_out_search(one, tmp_path), one, trainer=FAKE)
    places = sorted(int((math.log10(trial.values["optimizer.lr"]) + 2) / 2 * 16) for trial in trials)
    assert places == list(range(16))
