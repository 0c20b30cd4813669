"""`python -m benchmarks.code_size` as a reader of the README calls it."""

import pytest
from benchmarks.code_size.__main__ import main
from benchmarks.code_size.changes import CHANGES, lines_to_change
from benchmarks.code_size.lines import count_lines


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--markdown"]])
def test_both_tables_are_printed(form, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main(["--contenders", "brute_force", "residuum", *form])
    said = capsys.readouterr().out
    for _, title in CHANGES:
        assert title in said
    for number in (count_lines("residuum").file, count_lines("brute_force").file):
        assert f"{number:,}" in said
    assert str(sum(lines_to_change("brute_force").values())) in said


def test_an_unknown_contender_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--contenders", "keras"])
    assert "invalid choice: 'keras'" in capsys.readouterr().err
