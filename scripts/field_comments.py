"""What the site's reference shows of a dataclass: a table of its fields, from the comments that stand at them.

In this package the comment above a field is its documentation: the help of the command line is made of it. griffe,
which reads the sources for the site, does not know of that; mkdocs.yml gives it this extension. Numbers of papers on
arXiv become links.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Adds a table of the fields to the docstring of each dataclass, in the place of a signature."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe when it has read anything."""
        if obj.docstring:
            obj.docstring.value = linked(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe when it has read a class."""
        if not any("dataclass" in str(decorator.value) for decorator in cls.decorators):
            return
        cls.decorators = []  # the signature would say the fields again, in one line
        rows = [_row(field, cls) for field in cls.attributes.values() if _is_field(field)]
        text = cls.docstring.value if cls.docstring else ""
        if rows:
            cls.docstring = griffe.Docstring(f"{text}\n\n{_table(rows)}", parent=cls)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe when it has read a name that is given a value: of a module it has the comment above it."""
        if isinstance(attr.parent, griffe.Module) and not attr.docstring and not attr.name.startswith("_"):
            comment = comment_at(attr.lines_collection[attr.filepath], attr.lineno or 1)
            attr.docstring = griffe.Docstring(prose(comment), parent=attr) if comment else None

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called by griffe when it has read all: names of choices are spelled out where a function takes one."""
        for function in _functions(pkg):
            for parameter in function.parameters:
                parameter.annotation = _spelled(parameter.annotation, function)


def comment_at(lines: list[str], number: int) -> str:
    """The comment at the field that begins in a line, counted from 1: the lines right above it, or behind it."""
    above: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.lstrip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    behind = re.search(r"[^#]\s\s# (.+)$", lines[number - 1])
    return " ".join(above) or (behind[1] if behind else "")


def prose(comment: str) -> str:
    """A comment as Markdown: patterns of file names keep their stars, numbers of papers become links."""
    parts = comment.split("`")
    parts[::2] = [part.replace("*", "\\*") for part in parts[::2]]
    return linked("`".join(parts))


def linked(text: str) -> str:
    """Text in which numbers of papers on arXiv, such as 1512.03385, are links."""
    return re.sub(r"(?<![\w./])(\d{4}\.\d{5})(?![\w])", r"[\1](https://arxiv.org/abs/\1)", text)


def cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _is_field(attribute: griffe.Attribute) -> bool:
    properties = {"property", "cached-property"} & attribute.labels
    return attribute.annotation is not None and not properties and not attribute.name.startswith("_")


def _functions(within: griffe.Module | griffe.Class) -> Iterator[griffe.Function]:
    for member in within.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from _functions(member)


def _spelled(annotation: Any, function: griffe.Function) -> Any:
    """An annotation in which a name that stands for words, `Literal[...]`, is replaced by them."""
    if isinstance(annotation, griffe.ExprBinOp):
        annotation.left = _spelled(annotation.left, function)
        annotation.right = _spelled(annotation.right, function)
    elif isinstance(annotation, griffe.ExprName):
        with contextlib.suppress(KeyError):
            known = function.modules_collection[annotation.canonical_path]
            if known.is_attribute and str(known.value).startswith("Literal["):
                return known.value
    return annotation


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    """A Markdown table of the fields, without defaults where none has one."""
    defaults = any(default for _, _, default, _ in rows)
    lines = (
        ["| field | type | default | |", "| --- | --- | --- | --- |"]
        if defaults
        else ["| field | type | |", "| --- | --- | --- |"]
    )
    for name, kind, default, meaning in rows:
        lines.append(f"| {' | '.join([name, kind, *([default] if defaults else []), meaning])} |")
    return "\n".join(lines)


def _row(field: griffe.Attribute, cls: griffe.Class) -> tuple[str, str, str, str]:
    default = "" if field.value is None else f"`{cell(str(field.value))}`"
    made = re.match(r"field\(default_factory=(lambda: )?([^,]+)\)$", str(field.value or ""))
    if made:
        default = f"`{made[2]}`" if made[1] else f"`{made[2]}()`"
    elif default.startswith("`field("):
        default = ""
    comment = comment_at(cls.lines_collection[field.filepath], field.lineno or 1)
    return f"`{field.name}`", cell(_kind(str(field.annotation), cls)), default, cell(prose(comment))


def _kind(annotation: str, cls: griffe.Class) -> str:
    """A field's type as the table says it: bounds that are declared beside it, words among which one is chosen."""
    declared = re.match(r"Annotated\[(.+?), (?=Within|AtLeast|arg|tyro)(.*)\]$", annotation, re.DOTALL)
    kind, beside = declared.groups() if declared else (annotation, "")
    within = re.search(r"Within\('?([\[(].+?[\])])'?\)", beside)
    least = re.search(r"AtLeast\(([^,)]+)(?:, ([^)]+))?\)", beside)
    bounds = f" in {within[1]}" if within else ""
    if least:
        low, high = (_value(word, cls).replace(" ** ", "^") for word in (least[1], least[2] or ""))
        bounds = f" from {low} to {high}" if high else f" from {low} on"
    return " or ".join(_words(part, cls) for part in kind.split(" | ")) + bounds


def _words(kind: str, cls: griffe.Class) -> str:
    """A type, or the words among which one is chosen."""
    words = re.match(r"Literal\[(.*)\]$", _value(kind, cls))
    if words:
        return ", ".join(f"`{word.strip()}`" for word in words[1].replace("'", "").split(","))
    inner = re.match(r"tuple\[(\w+), \.\.\.\]$", kind)
    if inner and _value(inner[1], cls).startswith("Literal["):
        return f"a tuple of {_words(inner[1], cls)}"
    return f"`{kind}`"


def _value(word: str, cls: griffe.Class) -> str:
    """What a name stands for in the class's module, or the word itself."""
    known = cls.module.attributes.get(word)
    return str(known.value) if known is not None else word
