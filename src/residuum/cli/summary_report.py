"""What `residuum summary` prints: the table of a network, part by part and layer by layer."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.text import Text

from residuum.cli.console import say
from residuum.cli.tables import MAC, figures_table, gigas, show
from residuum.config import ResNetConfig
from residuum.cost import PartCost, cost
from residuum.draw import traits


@dataclass(frozen=True)
class Totals:
    """Sums over a network: parameters, MAC of a forward pass, bytes kept for backward."""

    parameters: int
    macs: int
    activation_bytes: int

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {gigas(self.macs)} GMAC ({gigas(2 * self.macs)} GFLOP)"


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
    console.print(f"{MAC} Kept are the activations that the backward pass of training needs.", style="dim")
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
