"""The report: everything that was found as plain values, and as lines that fit on one screen."""

import os
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from residuum.bench.machine import commit
from residuum.doctor import installation, machine
from residuum.errors import shortened
from residuum.extras import DISTRIBUTION
from residuum.units import show_size

WIDTH = 80  # characters of a line
_NAMES = 13  # of them, for what a line is about


def examine() -> dict[str, Any]:
    """The installation, the machine and the problems, in values that JSON can say; nothing is changed or downloaded."""
    here = machine.describe()
    return {
        DISTRIBUTION: installation.describe() | {"commit": commit()},
        "python": platform.python_version(),
        "machine": here,
        "problems": [*installation.problems(), *machine.problems(here)],
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """The report as text, at most `WIDTH` characters wide: a name and a sentence or list, then the problems."""
    shown: list[str] = []
    for name, text in _rows(found):
        shown += _wrapped(f"{name:<{_NAMES}}", " " * _NAMES, text)
    problems = found["problems"]
    shown.append("")
    if not problems:
        return [*shown, "No problems were found."]
    shown.append(f"{len(problems)} problem{'s were' if len(problems) > 1 else ' was'} found:")
    for problem in problems:
        shown += _wrapped("- ", "  ", f"{problem}.")
    return shown


def _wrapped(first: str, others: str, text: str) -> list[str]:
    # Paths are cut anywhere rather than run over the edge; words with a hyphen, such as names of extras, are not.
    return textwrap.wrap(
        _at_home(text), WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    ) or [first.rstrip()]


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ours, here = found[DISTRIBUTION], found["machine"]
    how = "" if ours["installed"] else ", not installed"
    yield DISTRIBUTION, f"{ours['version'] or 'unknown'} from {ours['folder']} ({ours['commit']}{how})"
    versions = [f"Python {found['python']}", *(f"{name} {v or 'missing'}" for name, v in ours["libraries"].items())]
    yield "versions", ", ".join(versions)
    there: list[tuple[str, Any]] = []
    missing: list[tuple[str, Any]] = []
    for extra, libraries in ours["extras"].items():
        whole = all(libraries.values())
        (there if whole else missing).append((extra, libraries))
    yield "extras", "; ".join(_extra(*one) for one in there) or "none"
    if missing:
        yield "missing", "; ".join(_extra(*one) for one in missing)
    yield "system", here["system"]
    yield "processor", f"{here['processor']}; torch uses {here['torch_uses']}"
    has = [name for name, there in here["instructions"].items() if there]
    lacks = [name for name, there in here["instructions"].items() if not there]
    if has:
        yield "instructions", ", ".join(has) + (f"; not {', '.join(lacks)}" if lacks else "")
    yield "precision", f"auto is {here['precision']}: {here['precision_why']}"
    yield "accelerator", _accelerators(here["devices"])
    yield "CUDA", f"torch built for {here['cuda'] or 'CPUs alone'}; driver {here['nvidia_driver'] or 'none'}"
    yield "threads", _threads(here["threads"])
    memory = here["memory"]
    limit = f", container's limit {show_size(memory['container'])}" if memory["container"] else ", no container's limit"
    free = "" if memory["free"] is None else f", {show_size(memory['free'])} free"
    yield "memory", f"{show_size(memory['total'])}{limit}{free}"
    shared = "none" if memory["shared"] is None else show_size(memory["shared"])
    allocator, huge = (memory[name] or "unknown" for name in ("allocator", "huge_pages"))
    yield "", f"allocator {allocator}, huge pages {huge}, /dev/shm {shared}"
    yield "compiler", here["compiler"] or "none: engines inductor and aoti, and compiled steps, need one, such as g++"
    cache = here["cache"]
    free = "" if cache["free"] is None else f", {show_size(cache['free'])} free on its disk"
    yield "cache", f"{cache['folder']}: {show_size(cache['bytes'])}{free}"
    yield (
        "environment",
        " ".join(f"{name}={shortened(value, 60)}" for name, value in here["environment"].items()) or "nothing set",
    )


def _extra(extra: str, libraries: Mapping[str, str | None]) -> str:
    said = ", ".join(f"{name} {version or 'missing'}" for name, version in libraries.items())
    return said if list(libraries) == [extra] else f"{extra}: {said}"


def _accelerators(devices: Sequence[Mapping[str, Any]]) -> str:
    """Those that are alike together: `cuda:0, cuda:1: NVIDIA H100, 9.0, 85.00 GB`."""
    alike: dict[str, list[str]] = {}
    for device in devices:
        parts = (device["what"], device["memory"] and show_size(device["memory"]))
        alike.setdefault(", ".join(part for part in parts if part), []).append(device["name"])
    return (
        "; ".join(": ".join(part for part in (", ".join(names), what) if part) for what, names in alike.items())
        or "none"
    )


def _threads(found: Mapping[str, Any]) -> str:
    openmp = f" ({found['openmp']})" if found["openmp"] else ""
    allowed = "" if found["allowed"] in (None, found["processors"]) else f", {found['allowed']} of them allowed"
    container = f", container's share {found['container']:.3g}" if found["container"] else ""
    return (
        f"torch {found['torch']}{openmp}, {found['torch_between_operators']} between operators; "
        f"{found['processors']} processors{allowed}{container}"
    )


def _at_home(text: str) -> str:
    """Without the name of the user, which a public report need not show."""
    home = os.path.expanduser("~")  # noqa: PTH111 (never fails)
    return text.replace(f"{home}/", "~/") if len(home) > 1 and Path(home).is_absolute() else text
