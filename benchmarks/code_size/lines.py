"""Lines of code: what it takes to define ResNet-50, and to change it. Nothing that is counted is run or imported.

What defines a network is the closure over definitions from what a user calls: every function, class, assignment and
import at the top level of a module that is reached by name, within the library that the call belongs to. Imports are
followed wherever they stand, also within functions, and through modules that hand names on. A class counts whole, with
methods that nobody calls; what is reached only by a text (a registry, a table of lazy imports) does not count. Nor do
torch, the standard library and all other packages, blank lines, comments and docstrings.
"""

import ast
import builtins
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.code_size.changes.code import code_numbers

from residuum.errors import ConfigError, quoted

Reference = tuple[str, str]  # a module's dotted name, and a name in it


@dataclass(frozen=True)
class Definition:
    """Where a contender's network is defined: what a user calls, and the modules that are about this network alone."""

    library: str
    calls: tuple[Reference, ...]
    modules: tuple[str, ...]


DEFINITIONS = {
    "brute_force": Definition(
        "benchmarks", (("benchmarks.code_size.brute_force", "ResNet50"),), ("benchmarks.code_size.brute_force",)
    ),
    "residuum": Definition(
        "residuum",
        (("residuum.nn.resnet", "ResNet"), ("residuum.presets", "preset")),  # ResNet(preset("resnet50"))
        (
            "residuum.config",
            "residuum.nn.layers",
            "residuum.nn.stochastic_depth",
            "residuum.nn.blocks",
            "residuum.nn.resnet",
            "residuum.presets",
        ),
    ),
    "torchvision": Definition(
        "torchvision", (("torchvision.models.resnet", "resnet50"),), ("torchvision.models.resnet",)
    ),
    "timm": Definition("timm", (("timm.models.resnet", "resnet50"),), ("timm.models.resnet",)),
    "transformers": Definition(
        "transformers",
        (
            ("transformers.models.resnet.modeling_resnet", "ResNetForImageClassification"),
            ("transformers.models.resnet.configuration_resnet", "ResNetConfig"),
        ),
        ("transformers.models.resnet.modeling_resnet", "transformers.models.resnet.configuration_resnet"),
    ),
}


@dataclass(frozen=True)
class LineCount:
    """Lines of code that define a contender's ResNet-50.

    Ours are those of the whole family: there is one network, and the table of presets counts whole.
    """

    contender: str
    file: int  # of the closure, in the files that are about this network alone
    all: int  # of the closure, in all files of the library
    whole_file: int  # those files whole, reached or not: what there is to read
    whole_all: int  # all files that the closure reaches, whole
    files: int  # how many the closure reaches


def count_lines(contender: str) -> LineCount:
    """Count one of `DEFINITIONS` in what is installed; raises `ConfigError` where it is unknown or not installed."""
    if contender not in DEFINITIONS:
        raise ConfigError(f"there is no contender {quoted(contender)}; it must be one of {', '.join(DEFINITIONS)}")
    definition = DEFINITIONS[contender]
    folder = folder_of(definition.library)
    if folder is None:
        raise ConfigError(f"{contender} is not installed; install it with: pip install {definition.library}")
    library = Library(definition.library, folder)
    reached = library.closure(definition.calls)
    whole = {name: len(library.module(name).code) for name in {*reached, *definition.modules}}
    return LineCount(
        contender,
        sum(len(reached.get(name, ())) for name in definition.modules),
        sum(len(numbers) for numbers in reached.values()),
        sum(whole[name] for name in definition.modules),
        sum(whole[name] for name in reached),
        len(reached),
    )


def folder_of(library: str) -> Path | None:
    """Where the sources of a library lie, or None where it is not installed. That of the benchmarks is at hand."""
    if library == "benchmarks":
        return Path(__file__).parents[1]
    spec = find_spec(library)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


@dataclass(frozen=True)
class Module:
    """A parsed file: its code lines, and for each name the top-level statements that bind it."""

    name: str
    package: str  # what relative imports start from
    code: frozenset[int]
    bindings: dict[str, list[ast.stmt]]
    # Names that only type checkers see bound: where modules are lazy, these say what a name is.
    typed: dict[str, list[ast.stmt]]
    # What it imports by `*`, and what others get of it by `*` where it says so.
    stars: tuple[str, ...]
    exports: frozenset[str] | None


@dataclass
class Library:
    """The modules of one package, read from its folder as they are needed."""

    name: str
    folder: Path
    _modules: dict[str, Module] = field(default_factory=dict)

    def path(self, name: str) -> Path | None:
        """The file of a module of this library, or None where it has no such module."""
        head, *parts = name.split(".")
        if head != self.name:
            return None
        place = self.folder.joinpath(*parts)
        candidates = (place / "__init__.py", place.with_suffix(".py") if parts else place / "__init__.py")
        return next((path for path in candidates if path.is_file()), None)

    def module(self, name: str) -> Module:
        """The module of a dotted name, which must be there."""
        if name not in self._modules:
            path = self.path(name)
            assert path is not None, name
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            bindings: dict[str, list[ast.stmt]] = {}
            typed: dict[str, list[ast.stmt]] = {}
            stars = []
            for statement, for_types in _statements(tree.body):
                for bound in _bound(statement):
                    (typed if for_types else bindings).setdefault(bound, []).append(statement)
                if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                    stars.append(_source(statement, package))
            self._modules[name] = Module(
                name,
                package,
                frozenset(code_numbers(source, tree)),
                bindings,
                typed,
                tuple(stars),
                _exports(tree),
            )
        return self._modules[name]

    def offers(self, name: str, bound: str) -> bool:
        """Whether `from name import *` binds a name."""
        if self.path(name) is None:
            return False
        module = self.module(name)
        if module.exports is not None:
            return bound in module.exports
        known = bound in module.bindings or bound in module.typed
        return not bound.startswith("_") and (known or any(self.offers(star, bound) for star in module.stars))

    def closure(self, calls: Iterable[Reference]) -> dict[str, set[int]]:
        """The lines of code that are reached from `calls`, by module."""
        reached: dict[str, set[int]] = {}
        pending, seen = list(calls), set[Reference]()
        done: set[tuple[str, int]] = set()
        while pending:
            reference = pending.pop()
            if reference in seen:
                continue
            seen.add(reference)
            name, bound = reference
            if self.path(name) is None:
                continue
            module = self.module(name)
            if bound in module.bindings:
                for statement in module.bindings[bound]:
                    reached.setdefault(name, set()).update(module.code.intersection(_span(statement)))
                    if isinstance(statement, ast.Import | ast.ImportFrom):
                        pending.extend(_imported(statement, module.package, bound))
                    elif (name, statement.lineno) not in done:
                        done.add((name, statement.lineno))
                        pending.extend(self._used(module, statement))
            elif bound in module.typed:  # the module is lazy, and only type checkers see it import
                for statement in module.typed[bound]:
                    if isinstance(statement, ast.ImportFrom):
                        pending.extend(_imported(statement, module.package, bound))
            elif self.path(f"{name}.{bound}") is None and not hasattr(builtins, bound):
                pending.extend((star, bound) for star in module.stars if self.offers(star, bound))
        return reached

    def _used(self, module: Module, statement: ast.stmt) -> Iterator[Reference]:
        """What a definition uses: names of its own module, attributes of modules, and what it imports within."""
        places: dict[str, str] = {}  # names that stand for modules
        for inner in ast.walk(statement):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                yield from _imported(inner, module.package)
                places.update(self._places(inner, module.package))
        globals_used = _free_names(statement)
        for used in globals_used:
            yield module.name, used
            for binding in module.bindings.get(used, ()):
                if isinstance(binding, ast.Import | ast.ImportFrom):
                    places.update(self._places(binding, module.package, used))
        for inner in ast.walk(statement):
            if isinstance(inner, ast.Attribute) and (chain := _chain(inner)) and chain[0] in places:
                place = places[chain[0]]
                for part in chain[1:]:
                    yield place, part
                    place = f"{place}.{part}"

    def _places(
        self, statement: ast.Import | ast.ImportFrom, package: str, only: str | None = None
    ) -> Iterator[tuple[str, str]]:
        """The names that an import binds to modules of this library, and these modules."""
        for alias in statement.names:
            if isinstance(statement, ast.Import):
                bound = alias.asname or alias.name.partition(".")[0]
                place = alias.name if alias.asname else bound
            else:
                bound, place = alias.asname or alias.name, f"{_source(statement, package)}.{alias.name}"
            if only in (None, bound) and self.path(place) is not None:
                yield bound, place


def _statements(body: Iterable[ast.stmt], for_types: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Statements at the top level, those under conditions too, and whether only type checkers see them."""
    for statement in body:
        if isinstance(statement, ast.If):
            typing = "TYPE_CHECKING" in ast.unparse(statement.test)
            yield from _statements(statement.body, for_types or typing)
            yield from _statements(statement.orelse, for_types)
        elif isinstance(statement, ast.Try):
            handlers = [inner for handler in statement.handlers for inner in handler.body]
            parts = (*statement.body, *handlers, *statement.orelse, *statement.finalbody)
            yield from _statements(parts, for_types)
        else:
            yield statement, for_types


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top level binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    stored = (n for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    # A table that is filled by key after it is made: `ACTIVATIONS["x"] = ...`.
    filled = (
        n.value
        for n in ast.walk(statement)
        if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name)
    )
    return {n.id for n in (*stored, *filled)} - {"__all__"}


def _exports(tree: ast.Module) -> frozenset[str] | None:
    """The texts of `__all__`, or None where there is none."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(ast.unparse(target) == "__all__" for target in statement.targets):
            texts = (n.value for n in ast.walk(statement.value) if isinstance(n, ast.Constant))
            return frozenset(text for text in texts if isinstance(text, str))
    return None


def _source(statement: ast.ImportFrom, package: str) -> str:
    """The module that `from ... import` names, its dots worked out."""
    if not statement.level:
        return statement.module or ""
    parts = package.split(".")
    parents = parts[: len(parts) - statement.level + 1]
    return ".".join([*parents, statement.module] if statement.module else parents)


def _imported(statement: ast.Import | ast.ImportFrom, package: str, only: str | None = None) -> Iterator[Reference]:
    """What an import takes from other modules by name."""
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            if only in (None, alias.asname or alias.name) and alias.name != "*":
                yield _source(statement, package), alias.name


def _span(statement: ast.stmt) -> range:
    """Its lines, decorators included."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
    return range(first, (statement.end_lineno or first) + 1)


def _chain(node: ast.expr) -> list[str]:
    """`["a", "b", "c"]` of `a.b.c`, or nothing of what does not start with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def _free_names(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement takes from its module: those that no scope within it binds."""
    found: set[str] = set()

    def visit(node: ast.AST, local: frozenset[str]) -> None:
        if isinstance(node, ast.Name):
            if node.id not in local:
                found.add(node.id)
        elif isinstance(node, ast.Constant | ast.Import | ast.ImportFrom):
            pass
        elif isinstance(node, _Function):
            arguments = node.args
            outer: list[ast.AST | None] = [*arguments.defaults, *arguments.kw_defaults]
            given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            given += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
            outer += [a.annotation for a in given]
            body: list[ast.stmt] | list[ast.expr]
            if isinstance(node, ast.Lambda):
                body = [node.body]
            else:
                body = node.body
                outer += [*node.decorator_list, node.returns]
            for part in outer:
                if part is not None:
                    visit(part, local)
            inner = local | {a.arg for a in given} | _local_names(body)
            for part in body:
                visit(part, inner)
        elif isinstance(node, ast.ClassDef):
            for part in (*node.decorator_list, *node.bases, *node.keywords):
                visit(part, local)
            own = local | _local_names(node.body)
            for part in node.body:
                # Methods do not see what the class binds; what stands in its body does.
                visit(part, local if isinstance(part, _Function) else own)
        elif isinstance(node, _Comprehension):
            targets = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
            for part in ast.iter_child_nodes(node):
                visit(part, local | targets)
        else:
            for part in ast.iter_child_nodes(node):
                visit(part, local)

    visit(statement, frozenset())
    return found


def _local_names(body: Sequence[ast.AST]) -> set[str]:
    """The names that a function or class binds itself; what is within its own functions and classes is theirs."""
    names: set[str] = set()
    shared: set[str] = set()
    pending = list(body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Lambda | _Comprehension):
            continue
        if isinstance(node, ast.Global | ast.Nonlocal):
            shared.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        pending.extend(ast.iter_child_nodes(node))
    return names - shared
