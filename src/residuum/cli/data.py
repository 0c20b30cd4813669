"""`residuum data check` and `residuum data pack`: datasets looked through, and put into one file."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.text import Text

from residuum.cli.console import say
from residuum.errors import ConfigError
from residuum.units import counted
from residuum.validation import AtLeast

if TYPE_CHECKING:
    from residuum.data.checking import Check

SHOWN = 10  # lines of each kind of fault
CLASSES = 40  # in the table


@dataclass(frozen=True)
class DataCheck:
    """Decode every image of a dataset and count what is wrong. Exit code 1 for bad images, and the same ones twice.

    That is: images that cannot be decoded, and images with the very same pixels in two splits or under two labels.
    """

    # dataset of any kind: folder, list, tar shards, .npz, .parquet, packed file, or hf: and a name
    path: Annotated[str, tyro.conf.Positional]
    # print everything as JSON, with every name
    json: bool = False


@dataclass(frozen=True)
class DataPack:
    """Put a dataset of any kind into one file, which is read faster. Classes, splits, labels and names stay.

    Without a size images are copied as they are, and training ends with the same weights. With a size they are scaled
    and decoded, and nothing is left to decode in training.
    """

    # dataset of any kind: folder, list, tar shards, .npz, .parquet, or hf: and a name
    path: Annotated[str, tyro.conf.Positional]
    # file to write, which must be given
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    # pixels of the shorter side, to which larger images are scaled; each then takes 3 bytes a pixel
    size: Annotated[int | None, AtLeast(1, 1 << 14)] = None
    # leave out image files that cannot be decoded instead of stopping at the first
    skip_bad_images: bool = False


def run_check(command: DataCheck, console: Console) -> int:
    """Check, and print what was found; 1 where something is wrong."""
    from residuum.data.checking import as_json, check

    found = check(command.path, _telling(console if not command.json else None))
    if command.json:
        console.out(json.dumps(as_json(found)), highlight=False)
    else:
        _print(found, console)
    return int(found.wrong)


def run_pack(command: DataPack, console: Console) -> int:
    """Pack, and say how large the file became."""
    from residuum.data.packing import pack
    from residuum.units import show_size

    if command.out is None:
        raise ConfigError("residuum data pack needs --out, the file to write")
    begin = time.monotonic()
    done = pack(
        command.path, command.out, size=command.size, skip_bad_images=command.skip_bad_images, say=_telling(console)
    )
    for why in done.skipped:
        say(console, "left out  ", why)
    seconds = time.monotonic() - begin
    say(console, f"written: {done.path}, {counted(done.images, 'image')}, {show_size(done.size)}, in {seconds:.1f} s")
    return 0


def _telling(console: Console | None) -> Callable[[str], None]:
    return lambda text: say(console, text) if console is not None else None


def _print(found: "Check", console: Console) -> None:
    from residuum.cli.tables import figures_table, show
    from residuum.data.checking import size_range

    catalog = found.catalog
    splits = list(catalog.files)
    images = ", ".join(f"{len(catalog.files[split]):,} {split}" for split in splits)
    say(console, Text(catalog.name, "bold"), f": {images} images, {counted(len(catalog.classes), 'class')}")
    least = sorted(catalog.classes, key=lambda name: found.counts[splits[0]].get(name, 0))[:CLASSES]
    chosen = [name for name in catalog.classes if name in set(least)]
    table = figures_table("class", splits)
    for name in chosen:
        label = Text(name if len(name) <= 40 else f"{name[:37]}...")
        table.add_row(label, *(f"{found.counts[split].get(name, 0):,}" for split in splits))
    show(console, table)
    if len(catalog.classes) > CLASSES:
        say(console, f"The {CLASSES} of {len(catalog.classes)} classes with the fewest images; --json has all.")
    sizes = size_range(found)
    if sizes:
        words = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        say(console, "sizes      height x width: ", words)
        say(console, "modes      ", ", ".join(f"{mode} {count:,}" for mode, count in found.modes.items()))
    for kind, count in catalog.left_out.items():
        say(console, "left out   ", f"{kind} ({count:,})")
    _faults(console, "image", "cannot be decoded", found.bad, "red")
    for what, groups, colour in (
        ("are in several splits", found.between, "red"),
        ("have different labels", found.contradicting, "red"),
        ("are in one split more than once", found.within, "yellow"),
    ):
        lines = ["  =  ".join(group[:4]) + ("  =  ..." if len(group) > 4 else "") for group in groups]
        _faults(console, "group", f"of images with the very same pixels {what}", lines, colour)
    if not found.wrong:
        say(console, Text("nothing is wrong", "green"))


def _faults(console: Console, unit: str, what: str, lines: Sequence[str], colour: str) -> None:
    if not lines:
        return
    say(console, Text(f"{counted(len(lines), unit)} {what}", colour))
    for line in lines[:SHOWN]:
        say(console, f"  {line}")
    if len(lines) > SHOWN:
        say(console, f"  and {len(lines) - SHOWN:,} more; --json has all")
