"""Optional libraries, imported where they are used."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from residuum.errors import MissingExtraError


def need(module: str, *, extra: str) -> Any:
    """A module of an optional library; raises `MissingExtraError` that names the extra which brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError(f'this needs {library}; install it with: pip install "residuum[{extra}]"') from error


def version_of(library: str) -> str | None:
    """The version of an installed library; None where it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None
