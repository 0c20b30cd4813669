"""A comparison as it is shown: whole at any width, the same numbers in JSON, and a page."""

import io
import json

import pytest
from rich.console import Console
from tests.evaluation.folders import make_run

from residuum.evaluation.comparison import print_comparison
from residuum.evaluation.runs import compare

VALUES = {
    "a": (0.9612, 0.9580, 0.9634, 0.9601),
    "b": (0.9702, 0.9668, 0.9731, 0.9699),
    "c": (0.9600, 0.9601, 0.9622, 0.9599),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fields = {"a": {}, "b": {"optimizer.lr": 0.2}, "c": {"model.width": 0.5, "mixing.mixup": 0.2}}
    return [
        make_run(root / f"digits-{letter}{seed}", (0.4, 0.8, value), seed=seed, **fields[letter])
        for letter, values in VALUES.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_in_a_terminal_every_figure_is_whole(paths, width):
    text = io.StringIO()
    print_comparison(Console(file=text, width=width, force_terminal=True, color_system=None), compare(paths))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for figure in ("96.07", "97.00", "+0.93", "higher", "not resolved", "more seeds", "4 pairs", "digits-c3"):
        assert figure in text.getvalue(), figure


def test_json_has_every_number(command, paths):
    found = json.loads(command("compare", *paths, "--json").out)
    first, second, third = found["groups"]
    assert first["values"] == {str(seed): value for seed, value in enumerate(VALUES["a"])}
    assert second["changes"] == {"optimizer.lr": [0.1, 0.2]}
    assert (second["difference"]["verdict"], third["difference"]["verdict"]) == ("higher", "not resolved")
    assert third["difference"]["more"] >= 1
    assert found["number"] == "val_accuracy"


@pytest.mark.slow
def test_the_page_has_curves_and_tables(command, paths, tmp_path):
    result = command("compare", *paths, "--html", tmp_path / "page.html")
    assert result.code == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count("<svg") == 4
    for word in ("optimizer.lr 0.1", "not resolved", "digits-b2", "residuum compare", "val accuracy (%)"):
        assert word in text


@pytest.mark.parametrize(
    ("line", "says"),
    [((), "needs"), (("nowhere",), "'nowhere' is no run"), (("--split", "train", "x"), "--split is 'train'")],
)
def test_mistakes_get_one_sentence(refused, line, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused("compare", *line)
