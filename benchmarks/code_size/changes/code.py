"""Which lines of a Python source are code: not blank, not a comment, not a docstring."""

import ast
import io
import tokenize

_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_numbers(source: str, tree: ast.Module | None = None) -> set[int]:
    """Numbers, from 1, of the lines that hold code; `tree` is the parsed source where that is at hand."""
    tree = ast.parse(source) if tree is None else tree
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                numbers.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    blank = {number for number, line in enumerate(source.splitlines(), 1) if not line.strip()}
    return numbers - blank


def code_lines(source: str) -> list[str]:
    """The lines that hold code, as they stand."""
    lines = source.splitlines()
    return [lines[number - 1].rstrip() for number in sorted(code_numbers(source))]
