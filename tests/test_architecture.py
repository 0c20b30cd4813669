"""The imports of the package: as the table in docs/architecture.md says, downwards, without a circle."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import residuum

PACKAGE = Path(residuum.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
ROW = re.compile(r"^\| `([\w/.]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def room(parts):
    """The folder or module of the top level that a module is in."""
    return parts[0]


def imports():
    """Room to the rooms that it imports: at the top of a module, inside a function, or for types alone."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        if inside[0] == "__init__":  # the public names, which know every room
            continue
        mine = found.setdefault(inside[0], set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports by dots; this package names modules in full"
                bare = node.module == "residuum"
                modules = [f"residuum.{alias.name}" for alias in node.names] if bare else [node.module]
            for module in modules:
                top, _, rest = module.partition(".")
                other = rest.partition(".")[0]
                if top == "residuum" and other and other != inside[0] and is_room(other):
                    mine.add(other)
    return found


def is_room(name):
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def table():
    """Room to what it knows and to what knows it, as the page says; in the page's order."""

    def names(cell):
        return set(re.findall(r"`(\w+)`", cell))

    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {name.split(".")[0].strip("/"): (names(knows), names(known)) for name, _, knows, known in rows}


def test_each_room_knows_what_the_table_says():
    actual = imports()
    assert {name: knows for name, (knows, _) in table().items()} == actual


def test_each_room_is_known_by_what_the_table_says():
    actual = imports()
    known = {name: {other for other, knows in actual.items() if name in knows} for name in actual}
    assert {name: by for name, (_, by) in table().items()} == known


def test_no_import_points_up():
    order = list(table())
    up = [(name, other) for name, knows in imports().items() for other in knows if order.index(other) >= order.index(name)]
    assert up == []


def test_the_modules_of_a_room_import_one_another_in_no_circle():
    for folder in (path for path in PACKAGE.iterdir() if path.is_dir()):
        graph = {}
        for path in folder.glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            begins = f"residuum.{folder.name}."
            graph[path.stem] = {
                node.module.removeprefix(begins)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(begins)
            }
        list(TopologicalSorter(graph).static_order())  # raises for a circle
