"""What counts as a line of code, and what a definition reaches."""

import pytest
from benchmarks.code_size.changes.code import code_lines
from benchmarks.code_size.lines import Library, count_lines

from residuum import ConfigError

SOURCE = '''"""A module."""

import os  # counts


def f(x):
    """A function.

    Of two paragraphs.
    """
    # why

    text = """one

    three"""
    return (
        x,
        text,
    )
'''


def test_blank_lines_comments_and_docstrings_are_no_code():
    assert code_lines(SOURCE) == [
        "import os  # counts", "def f(x):", '    text = """one', '    three"""', "    return (", "        x,",
        "        text,", "    )",
    ]  # fmt: skip


@pytest.fixture
def library(tmp_path):
    """A package of files by name."""

    def make(**files):
        root = tmp_path / "lib"
        for name, text in ({"__init__": ""} | files).items():
            path = root / f"{name.replace('__slash__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Library("lib", root)

    return make


def reached(library, *calls):
    """The text of each line that is reached, by module."""
    found = {}
    for name, numbers in library.closure(calls).items():
        lines = library.path(name).read_text().splitlines()
        found[name] = [lines[number - 1] for number in sorted(numbers)]
    return found


def test_only_what_is_reached_by_name_counts(library):
    lib = library(
        a="import os\nimport sys\nSIZE = 3\nOTHER = 4\n"
        "def f(): return g(SIZE, os)\ndef g(*x): return x\ndef h(): return f()\n"
    )
    assert reached(lib, ("lib.a", "f")) == {
        "lib.a": ["import os", "SIZE = 3", "def f(): return g(SIZE, os)", "def g(*x): return x"]
    }


def test_a_local_name_is_not_the_modules(library):
    lib = library(
        a="def norm(): pass\ndef x(): pass\ndef i(): pass\n"
        "def f(norm):\n    for i in norm: x = i\n    return [x for x in norm]\n"
        "class C:\n    x = 1\n    def m(self): return x()\n"
    )
    assert reached(lib, ("lib.a", "f"))["lib.a"][0] == "def f(norm):"
    assert reached(lib, ("lib.a", "C"))["lib.a"][0] == "def x(): pass"  # a method does not see its class's names


def test_imports_are_followed_also_within_functions_and_through_packages(library):
    lib = library(
        a="from .p import name\nfrom . import b as other\n"
        "def f():\n    from lib.c import late\n    return name, other.g(), late\n",
        b="def g(): pass\ndef unused(): pass\n",
        c="late = 1\nnever = 2\n",
        p__slash____init__="from .inner import *\n",
        p__slash__inner="__all__ = ['name']\nname = 1\n_hidden = 2\n",
    )
    found = reached(lib, ("lib.a", "f"))
    assert found["lib.b"] == ["def g(): pass"]
    assert found["lib.c"] == ["late = 1"]
    assert found["lib.p.inner"] == ["name = 1"]
    assert found["lib.a"][:2] == ["from .p import name", "from . import b as other"]


def test_lazy_modules_are_followed_by_what_type_checkers_see(library):
    lib = library(
        __init__="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib.b import g\n",
        a="from lib import g\ndef f(): return g()\n",
        b="def g(): pass\n",
    )
    assert reached(lib, ("lib.a", "f")) == {
        "lib.a": ["from lib import g", "def f(): return g()"],
        "lib.b": ["def g(): pass"],
    }


def test_other_packages_and_tables_of_texts_are_not_followed(library):
    lib = library(
        a="import torch\nfrom lib.b import *\ndef f(): return torch.g('lib.b', len([]))\n",
        b="def g(): pass\ndef len(x): pass\n",
    )
    assert list(reached(lib, ("lib.a", "f"))) == ["lib.a"]


def test_ours_is_counted_in_the_files_that_define_it():
    ours, brute = count_lines("residuum"), count_lines("brute_force")
    assert ours.file <= ours.whole_file
    assert ours.file < ours.all <= ours.whole_all
    assert brute.file == brute.all == brute.whole_file > 300


@pytest.mark.slow
@pytest.mark.parametrize("contender", ["torchvision", "timm", "transformers"])
def test_a_librarys_network_needs_more_than_its_own_file(contender):
    pytest.importorskip(contender)
    counted = count_lines(contender)
    assert 200 < counted.file <= counted.whole_file
    assert counted.file < counted.all <= counted.whole_all
    assert counted.files > 5


def test_the_closure_runs_nothing(library):
    lib = library(a="raise SystemExit\nfrom lib.b import g\n", b="raise SystemExit\ndef g(): pass\n")
    assert reached(lib, ("lib.a", "g"))["lib.b"] == ["def g(): pass"]


def test_unknown_contenders_are_refused():
    with pytest.raises(ConfigError, match="no contender 'keras'"):
        count_lines("keras")
