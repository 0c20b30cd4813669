"""What the site's reference shows of a dataclass."""

import dataclasses
import re
from pathlib import Path

import griffe
from scripts.field_comments import FieldComments, comment_at, linked, prose

from residuum.config import ResNetConfig

SOURCES = Path(__file__).parents[2] / "src"


def shown(module, name):
    path = SOURCES / "residuum" / f"{module}.py"
    code, lines = path.read_text(encoding="utf-8"), griffe.LinesCollection()
    lines[path] = code.splitlines()
    extensions = griffe.load_extensions(FieldComments)
    return griffe.visit(module, path, code, extensions=extensions, lines_collection=lines)[name].docstring.value


def test_every_field_has_a_row_with_its_type_default_and_comment():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", shown("config", "ResNetConfig"), re.MULTILINE)
    assert [row[0] for row in rows] == [field.name for field in dataclasses.fields(ResNetConfig)]
    found = {row[0]: row[1:3] for row in rows}
    assert found["width"] == ("`float` in [0.01, 64]", "`1.0`")
    assert found["depths"] == ("`tuple[int, ...]` from 1 to 1000", "`(3, 4, 6, 3)`")
    assert found["norm"] == ("`batch`, `group`", "`'batch'`")
    assert found["output_stride"] == ("`int` from 1 on", "`32`")


def test_a_dataclass_without_defaults_has_no_column_for_them():
    assert "| field | type | |" in shown("cost", "LayerCost")


def test_a_comment_is_what_stands_right_above_a_field_or_behind_it():
    lines = [
        "# of another",
        "",
        "    # over two",
        "    # lines",
        "    one: int = 1",
        "    two: str  # behind",
        "    three: int",
    ]
    assert [comment_at(lines, number) for number in (5, 6, 7)] == ["over two lines", "behind", ""]


def test_numbers_of_papers_become_links_and_patterns_keep_their_stars():
    assert linked("1512.03385, not 10.12345 or v1512.03385") == (
        "[1512.03385](https://arxiv.org/abs/1512.03385), not 10.12345 or v1512.03385"
    )
    assert prose("a/**/*.jpg and `b*`") == r"a/\*\*/\*.jpg and `b*`"
