"""The imports of the package: as the table in docs/architecture.md says, downwards, without a circle."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import residuum

PACKAGE = Path(residuum.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| [^|]+ \|$", re.MULTILINE)


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


def rows():
    """The rows of the page's table as the source would have them, in the page's order and with its words."""
    actual = imports()

    def words(names, itself):
        others = set(actual) - set(names) - {itself}
        if len(others) <= len(actual) / 4:
            return f"all but {', '.join(f'`{name}`' for name in order if name in others)}"
        return ", ".join(f"`{name}`" for name in order if name in names) or "nothing"

    found = ROW.findall(PAGE.read_text(encoding="utf-8"))
    order = [name for name, _ in found]
    assert sorted(order) == sorted(actual), "the table has a row for each room"
    for name, purpose in found:
        known = {other for other, knows in actual.items() if name in knows}
        yield f"| `{name}` | {purpose} | {words(actual[name], name)} | {words(known, name)} |"


def test_the_table_says_what_each_room_knows_and_what_knows_it():
    page = PAGE.read_text(encoding="utf-8").splitlines()
    for row in rows():
        assert row in page


def test_no_import_points_up():
    order = [name for name, _ in ROW.findall(PAGE.read_text(encoding="utf-8"))]
    up = [(one, other) for one, knows in imports().items() for other in knows if order.index(other) >= order.index(one)]
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


if __name__ == "__main__":  # `python -m tests.test_architecture` brings the page's table up to date
    text = PAGE.read_text(encoding="utf-8")
    for row in rows():
        name = row.split("`")[1]
        text = re.sub(rf"^\| `{name}` \|.*$", lambda match, row=row: row, text, flags=re.MULTILINE)
    PAGE.write_text(text, encoding="utf-8")
