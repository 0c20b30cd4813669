"""What a run notes of code, libraries and device."""

import json
import shutil

import pytest
import torch

from residuum.errors import RunError
from residuum.train import environment, resume


def test_a_run_notes_with_what_it_was_carried_out(finished):
    (entry,) = environment.read(finished.path)
    assert entry["epoch"] == 0
    assert entry["torch"] == torch.__version__
    assert entry["device"] == "cpu"
    assert entry["code"] == environment.code_digest()


def test_a_run_that_goes_on_with_something_else_notes_from_where(stopped, tmp_path):
    path = shutil.copytree(stopped.path, tmp_path / "run")
    (entry,) = environment.read(path)
    (path / environment.FILE).write_text(json.dumps([{**entry, "torch": "1.0"}]))
    resume(path, callbacks=[])
    assert [(e["epoch"], e["torch"]) for e in environment.read(path)] == [(0, "1.0"), (1, torch.__version__)]


def test_the_same_again_is_noted_once(stopped, tmp_path):
    path = shutil.copytree(stopped.path, tmp_path / "run")
    resume(path, callbacks=[])
    assert len(environment.read(path)) == 1


@pytest.mark.parametrize("content", ["junk", "{}", "[1]", "[" * 100_000])
def test_a_damaged_note_is_refused(tmp_path, content):
    (tmp_path / environment.FILE).write_text(content)
    with pytest.raises(RunError, match=r"environment\.json"):
        environment.read(tmp_path)
