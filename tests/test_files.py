"""Files are whole or not there."""

import os
import subprocess
import sys

import pytest

from residuum.errors import DataError, RunError
from residuum.files import new_folder, read_text, write_text, write_whole


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


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    with new_folder(tmp_path / "a" / "b", DataError) as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"
    with pytest.raises(DataError, match="exists already"), new_folder(tmp_path / "a" / "b", DataError):
        pass
    with pytest.raises(KeyError), new_folder(tmp_path / "c", DataError) as folder:
        (folder / "x").write_text("1")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_reader_that_leaves_while_a_folder_is_filled_is_no_fault_of_the_folder(tmp_path):
    with pytest.raises(BrokenPipeError), new_folder(tmp_path / "a", DataError):
        raise BrokenPipeError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_program_left_of_a_folder_is_in_nobodys_way(tmp_path):
    (tmp_path / ".a.0123abcd.partial").mkdir()
    (tmp_path / ".a.0123abcd.partial" / "old").touch()
    with new_folder(tmp_path / "a", DataError):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_what_a_killed_program_left_of_a_file_goes_with_the_next_one(tmp_path):
    line = """
import os, sys
from pathlib import Path
from residuum.files import write_whole
write_whole(Path(sys.argv[1]), lambda partial: (partial.write_text("half"), os.kill(os.getpid(), 9)), OSError)
"""
    path = tmp_path / "a.txt"
    assert subprocess.run([sys.executable, "-c", line, path], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".a.notes.partial.txt").touch()  # a name of somebody else's
    write_text(path, "whole", RunError)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.notes.partial.txt", "a.txt"]


def test_of_two_that_write_one_file_each_writes_a_whole_one_and_the_last_stays(tmp_path):
    path = tmp_path / "a.txt"

    def first(partial):
        partial.write_text("first")
        write_text(path, "second", RunError)
        assert path.read_text() == "second"
        with new_folder(tmp_path / "b", DataError) as one:
            (one / "x").touch()
            with new_folder(tmp_path / "b", DataError) as two:
                assert one != two
                (two / "y").touch()
            (tmp_path / "b").rename(tmp_path / "c")

    write_whole(path, first, RunError)
    assert path.read_text() == "first"
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a.txt", "b", "b/x", "c", "c/y"]


@pytest.mark.parametrize("place", ["file/x", "a\0b"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"), new_folder(tmp_path / place, DataError):
        pass


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old.bin").write_text("old")
    (tmp_path / "a.txt").symlink_to("store/old.bin")
    (tmp_path / "b.txt").symlink_to("store/new.bin")  # which leads to nothing yet
    endings = []
    for name in ("a.txt", "b.txt"):
        path = tmp_path / name
        write_whole(path, lambda partial: (endings.append(partial.suffix), partial.write_text("new")), RunError)
        assert path.is_symlink()
        assert path.read_text() == "new"
    assert endings == [".txt", ".txt"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["new.bin", "old.bin"]


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
@pytest.mark.parametrize("name", ["pipe", "link", "folder"])
def test_what_is_no_regular_file_is_refused_before_anything_is_written(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"{name}' is no regular file; choose another"):
        write_whole(tmp_path / name, lambda partial: pytest.fail("something is written"), DataError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("first\nsecond\n", encoding="utf-8-sig")
    assert read_text(tmp_path / "a.txt", DataError) == "first\nsecond\n"
