"""The run folder: whole files, the last two states, and a memory of the data."""

import os
import shutil

import pytest
import torch

from residuum.data.catalog import Catalog
from residuum.errors import RunError
from residuum.train.execution import Execution
from residuum.train.recipe import Recipe
from residuum.train.run import DataRecord, Run, free_folder

FILES = {
    "recipe.toml", "execution.toml", "environment.json", "data.json", "metrics.jsonl", "weights.safetensors",
    "state.pt", "state-previous.pt", "best.safetensors", "curves.png",
}  # fmt: skip


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of its own."""
    return Run(shutil.copytree(finished.path, tmp_path / "run"))


def test_a_run_leaves_a_whole_folder(finished):
    assert {p.name for p in finished.path.iterdir()} == FILES
    assert (finished.path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_it_was_made_of_is_read_back(finished):
    recipe, execution, data = Run(finished.path).read()
    assert recipe == finished.recipe.replace(norm_batch=256)  # which was left to the number of processes
    assert execution == Execution()
    assert data.classes == tuple("0123456789")


def test_the_states_load_as_tensors_and_plain_values(finished):
    for name in ("state.pt", "state-previous.pt"):
        assert torch.load(finished.path / name, weights_only=True)["format"]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def replace(path):
    torch.save({"weights": torch.zeros(3)}, path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def poison(path):
    torch.save({"format": 2, "network": Evil()}, path)


DAMAGES = [truncate, flip, empty, replace, poison, os.remove]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_falls_back_to_the_one_before_with_a_sentence(run, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.load(run.path / "state-previous.pt", weights_only=True)
    damage(run.path / "state.pt")
    values, sentence = run.load_state()
    assert values["sha256"] == before["sha256"]
    assert "state.pt" in sentence
    assert "going on from state-previous.pt, epoch" in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "evil").exists()


def test_a_whole_state_says_nothing(run):
    values, sentence = run.load_state()
    assert sentence is None
    assert values["progress"]["epoch"] == 2


@pytest.mark.parametrize("damage", [truncate, flip, replace])
def test_where_both_are_damaged_the_run_is_refused(run, damage):
    for name in ("state.pt", "state-previous.pt"):
        damage(run.path / name)
    with pytest.raises(RunError, match=r"cannot be resumed: state\.pt .*; state-previous\.pt") as caught:
        run.load_state()
    assert "\n" not in str(caught.value)


def test_saving_keeps_the_state_before(run):
    before = (run.path / "state.pt").read_bytes()
    run.save_state({"format": 2})
    assert (run.path / "state-previous.pt").read_bytes() == before
    assert torch.load(run.path / "state.pt", weights_only=True) == {"format": 2}


def test_a_write_that_fails_leaves_both_states(run, monkeypatch):
    before = {name: (run.path / name).read_bytes() for name in ("state.pt", "state-previous.pt")}

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"cannot write .*state\.pt: No space left"):
        run.save_state({})
    assert {name: (run.path / name).read_bytes() for name in before} == before
    assert not [p for p in run.path.iterdir() if "partial" in p.name]


@pytest.mark.parametrize("name", ["recipe.toml", "data.json", "execution.toml"])
@pytest.mark.parametrize("content", [b"junk", b"", b"\xff\xfe", b"[]", b'{"classes": 3}'])
def test_files_that_cannot_be_read_are_named(run, name, content):
    (run.path / name).write_bytes(content)
    if name == "execution.toml" and not content:
        assert run.read()[1] == Execution()
        return
    if name == "recipe.toml" and not content:
        return  # an empty recipe is one of defaults
    with pytest.raises(RunError, match=name):
        run.read()


@pytest.mark.parametrize("gone", ["recipe.toml", "data.json"])
def test_a_folder_that_lacks_something_is_no_run(run, gone):
    (run.path / gone).unlink()
    with pytest.raises(RunError, match=f"it has no {gone}"):
        run.read()


def test_a_folder_without_a_state_is_no_run(run):
    for name in ("state.pt", "state-previous.pt"):
        (run.path / name).unlink()
    with pytest.raises(RunError, match=r"it has no state\.pt"):
        run.read()


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already.*--out.*--resume"):
        Run.create(tmp_path / "run", Recipe(), Execution(), record(), lambda run: None)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        Run.create(tmp_path / "file" / "run", Recipe(), Execution(), record(), lambda run: None)


def test_runs_are_numbered(tmp_path):
    assert free_folder(tmp_path, "digits").name == "digits-1"
    (tmp_path / "digits-1").mkdir()
    assert free_folder(tmp_path, "digits").name == "digits-2"
    assert free_folder(tmp_path, "/some/where/birds/").name == "birds-1"
    assert free_folder(tmp_path, "/some/where/*.tar").name == "tar-1"
    assert free_folder(tmp_path, "hf:owner/birds").name == "birds-1"


# -- the record of the data --------------------------------------------------------------------------------------------


def record(classes=("cat", "dog"), train=(2, 2), val=(1, 1), digest="a"):
    files = {
        split: tuple((f"{name}/{i}.png", label) for label, name in enumerate(classes) for i in range(counts[label]))
        for split, counts in (("train", train), ("val", val))
    }
    return DataRecord.of(Catalog("pets", classes, 3, (16, 16), files, False, {}, digest))


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"classes": ("cat", "emu")}, "classes are now without 'dog' and with 'emu'"),
        ({"classes": ("cat", "dog", "emu"), "train": (2, 2, 2), "val": (1, 1, 1)}, "classes are now with 'emu'"),
        ({"classes": ("dog", "cat")}, "classes are now in another order"),
        ({"train": (2, 3), "digest": "b"}, "class 'dog' had 2 train files and has 3"),
        ({"val": (0, 1), "digest": "b"}, "class 'cat' had 1 val files and has 0"),
        ({"digest": "b"}, "other names or sizes than before"),
    ],
)
def test_a_record_tells_what_has_changed(now, says):
    assert says in record().changed(record(**now))


def test_a_record_is_the_same_after_writing_and_reading():
    assert DataRecord.from_json(record().to_json()) == record()
    assert record().changed(DataRecord.from_json(record().to_json())) is None
