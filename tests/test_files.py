"""Files are whole or not there."""

import pytest

from residuum.errors import RunError
from residuum.files import write_text, write_whole


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old", RunError)
    seen = []
    write_whole(path, lambda partial: (partial.write_text("new"), seen.append(path.read_text())), RunError)
    assert seen == ["old"]
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("inline_container.cc failed")]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(partial):
        partial.write_text("half")
        raise failure

    with pytest.raises(RunError, match="cannot write .*a.txt: .*; free space or choose another folder"):
        write_whole(path, fail, RunError)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_programs_own_error_is_not_hidden(tmp_path):
    def fail(partial):
        partial.write_text("half")
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        write_whole(tmp_path / "a.txt", fail, RunError)
    assert not list(tmp_path.iterdir())
