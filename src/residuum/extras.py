"""Optional libraries, imported where they are used; what this distribution and its extras are called."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from residuum.errors import MissingExtraError

# On PyPI `residuum` is another project, of chemistry, which installs a package of that name as well.
DISTRIBUTION = "residuum-nn"


def install(extra: str) -> str:
    """The line that installs an extra: `pip install "residuum-nn[hub]"`."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def need(module: str, *, extra: str) -> Any:
    """A module of an optional library; raises `MissingExtraError` that names the extra which brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError(f"this needs {library}; install it with: {install(extra)}") from error


def version_of(library: str) -> str | None:
    """The version of an installed library; None where it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None
