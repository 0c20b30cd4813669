"""Tables about networks: one network part by part, and all presets."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from residuum.cli.console import say
from residuum.config import ResNetConfig
from residuum.cost import PartCost, cost, totals
from residuum.draw import traits
from residuum.errors import ConfigError, nearest, quoted
from residuum.presets import PRESETS, list_presets, usual_image_size

_NOTE = "A MAC is one multiply-add, two FLOP. Kept are the activations that the backward pass of training needs."


@dataclass(frozen=True)
class Totals:
    """Sums over a network: parameters, MAC of a forward pass, bytes kept for backward."""

    parameters: int
    macs: int
    activation_bytes: int

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {gigas(self.macs)} GMAC ({gigas(2 * self.macs)} GFLOP)"


def gigas(count: int) -> str:
    """A count in units of 10^9."""
    return f"{count / 1e9:,.2f}" if count >= 1e9 else f"{count / 1e9:.3f}"


def figures_table(first: str, headings: Sequence[str]) -> Table:
    """An empty table of names and figures, as narrow as they allow."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show(console: Console, table: Table) -> None:
    """Print a table at its own width: a figure that is cut would be a wrong one."""
    usual = console.width
    console.width = max(usual, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    console.width = usual


def summarise(
    console: Console,
    name: str,
    config: ResNetConfig,
    image_size: tuple[int, int],
    batch_size: int,
    precision: str,
    *,
    layers: bool = False,
) -> Totals:
    """Print the table of one network by stage, with totals, and by layer; MAC and memory are for the whole batch."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    parts = cost(config, image_size, batch_size, dtype)
    total = Totals(sum(p.parameters for p in parts), sum(p.macs for p in parts), sum(p.activation_bytes for p in parts))
    height, width = image_size
    say(console, Text(name, "bold"), f": depth {config.depth}, {batch_size} x {height}x{width}, {precision}")
    if traits(config):
        console.print(", ".join(traits(config)))
    table = figures_table("part", ("output", "blocks", "parameters", "GMAC", "kept, MiB"))
    for part in parts:
        shape = "x".join(str(n) for n in part.shape)
        figures = (f"{part.parameters:,}", gigas(part.macs), _mebibytes(part.activation_bytes))
        table.add_row(part.name, shape, str(part.blocks or ""), *figures)
    table.add_section()
    count = str(sum(p.blocks for p in parts))
    memory = _mebibytes(total.activation_bytes)
    table.add_row("total", "", count, f"{total.parameters:,}", gigas(total.macs), memory, style="bold")
    show(console, table)
    if layers:
        _by_layer(console, parts)
    console.print(_NOTE, style="dim")
    return total


def _by_layer(console: Console, parts: list[PartCost]) -> None:
    """Print a line a layer, as `show` prints tables; rich would take half a minute for the deepest networks."""
    rows = [("layer", "output", "parameters", "MMAC", "backward", "kept, MiB"), ("",) * 6]
    for part in parts:
        for layer in part.layers:
            if not (layer.parameters or layer.macs or layer.activation_bytes):
                continue
            shape = "x".join(str(n) for n in layer.shape)
            macs, backward = (f"{count / 1e6:,.1f}" if count else "" for count in (layer.macs, layer.backward_macs))
            kept = f"{layer.activation_bytes / 2**20:,.1f}" if layer.activation_bytes else ""
            rows.append((layer.name, shape, f"{layer.parameters:,}" if layer.parameters else "", macs, backward, kept))
        rows.append(("",) * 6)
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        row[0].ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))
        for row in rows
    ]
    console.out("\n".join(line.rstrip() for line in ["", *lines]), highlight=False)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def print_presets(console: Console, pattern: str) -> None:
    """Print the presets whose names fit: depth, parameters, GMAC at the image size that each is meant for.

    A pattern without `*`, `?` or `[` fits every name that contains it. Raises `ConfigError` where none fits.
    """
    names = list_presets(pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
    if not names:
        hint = nearest(pattern, PRESETS) or "; 'residuum presets' lists all"
        raise ConfigError(f"no preset's name fits {quoted(pattern)}{hint}")
    table = figures_table("preset", ("depth", "parameters", "GMAC", "image"))
    for name in track(names, "counting", console=console, transient=True, disable=not console.is_terminal):
        config, size = PRESETS[name], usual_image_size(name)
        parameters, macs = totals(config, size)
        table.add_row(name, str(config.depth), f"{parameters:,}", gigas(macs), f"{size[0]}x{size[1]}")
    show(console, table)
    console.print(_NOTE.partition(" Kept")[0], style="dim")
