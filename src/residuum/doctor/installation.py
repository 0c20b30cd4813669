"""What is installed: this package, the libraries that it needs, those of its extras, and what does not go together."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, NamedTuple

import residuum
from residuum.extras import DISTRIBUTION, install, version_of

# Extras of those who work on the package; what they bring says nothing of how it runs.
_FOR_DEVELOPERS = ("test", "docs")
# A library's name, extras of it, versions, and the extra of ours that wants it.
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[[\w,.-]+\])?([^;]*)(?:;\s*extra\s*==\s*["']([\w-]+)["'])?""")


class Requirement(NamedTuple):
    """A library, the oldest version of it that will do, and the extra that brings it; none where all need it."""

    library: str
    least: str
    extra: str | None


def describe() -> dict[str, Any]:
    """Where the package comes from, the versions of the libraries that it needs, and of those of each extra."""
    found = list(requirements())
    extras: dict[str, dict[str, str | None]] = {}
    for library, _, extra in found:
        if extra is not None:
            extras.setdefault(extra, {})[library] = version_of(library)
    return {
        "version": getattr(residuum, "__version__", None),
        "installed": version_of(DISTRIBUTION),
        "folder": str(_folder()),
        "libraries": {library: version_of(library) for library, _, extra in found if extra is None},
        "extras": extras,
    }


def problems() -> Iterator[str]:
    """What does not go together, each as a sentence that ends with what to do."""
    other, here = version_of("residuum"), version_of(DISTRIBUTION)
    if other is not None:
        yield (
            f"the distribution residuum {other} is installed; it is another project's, of chemistry (or an early copy "
            f"of this one), and its package has the same name: pip uninstall residuum {DISTRIBUTION}, then pip "
            f"install {DISTRIBUTION}"
        )
    elif "list_presets" not in vars(residuum).get("__all__", ()):
        yield f"{_folder()} is not the package of {DISTRIBUTION}: remove it, and install {DISTRIBUTION} again"
    imported = getattr(residuum, "__version__", None)
    if here is not None and imported is not None and here != imported:
        yield (
            f"{DISTRIBUTION} {here} is installed, but {imported} is imported from {_folder()}: install that, or clear "
            "PYTHONPATH"
        )
    for library, least, extra in requirements():
        version = version_of(library)
        if version is not None and _release(version) < _release(least):
            newer = install(extra) if extra else f"pip install --upgrade {library}"
            yield f"{library} {version} is older than {least}: {newer}"
        elif version is None and extra is None:
            yield f"{library} is not installed: pip install {library}"
    wanted, torch = _torch_of_torchvision(), version_of("torch")
    if wanted is not None and torch is not None and wanted != torch.partition("+")[0]:
        yield (
            f"torchvision {version_of('torchvision')} is for torch {wanted}, but {torch} is installed: install the two "
            "together, as https://pytorch.org/get-started shows"
        )


def requirements() -> Iterator[Requirement]:
    """What the distribution says that it needs; of a checkout that is not installed, what its pyproject.toml says."""
    for text in _lines():
        found = _REQUIREMENT.match(text)
        if found is None or found[1] == DISTRIBUTION or found[3] in _FOR_DEVELOPERS:
            continue
        least = re.search(r">=\s*([\d.]+)", found[2])
        yield Requirement(found[1], least[1] if least else "0", found[3])


def _lines() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        pass
    try:
        project = tomllib.loads((_folder().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        return [*project["dependencies"], *(f'{line}; extra == "{extra}"' for extra, lines in extras for line in lines)]
    except (OSError, ValueError, KeyError, AttributeError):
        return []


def _torch_of_torchvision() -> str | None:
    """The version of torch that the installed torchvision was built with, which alone loads its operators."""
    try:
        said = requires("torchvision") or ()
    except PackageNotFoundError:
        return None
    return next((found[1] for line in said if (found := re.match(r"torch\s*\(?==\s*([\w.]+)", line))), None)


def _release(version: str) -> list[int]:
    """The numbers of a version, for comparing: 2.11.0 is 2.11."""
    numbers = [int(number) for number in re.findall(r"\d+", (re.match(r"[\d.]*", version) or [""])[0])]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _folder() -> Path:
    return Path(str(residuum.__file__)).parent
