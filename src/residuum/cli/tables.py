"""Tables about networks: one network part by part, and all presets."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from residuum.config import ResNetConfig
from residuum.cost import PartCost, cost
from residuum.errors import ConfigError
from residuum.presets import PRESETS, usual_image_size


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
    return f"{count / 1e9:.2f}" if count >= 1e9 else f"{count / 1e9:.3f}"


def summarise(
    console: Console,
    name: str,
    config: ResNetConfig,
    size: tuple[int, int],
    batch: int,
    precision: str,
    *,
    layers: bool = False,
) -> Totals:
    """Print the table of one network by stage, with totals, and by layer; MAC and memory are for the whole batch."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    parts = cost(config, size, batch, dtype)
    totals = Totals(
        sum(p.parameters for p in parts), sum(p.macs for p in parts), sum(p.activation_bytes for p in parts)
    )
    table = Table(title=f"{name}, depth {config.depth}, {batch} x {size[0]}x{size[1]}, {precision}", title_style="bold")
    table.add_column("part")
    for heading in ("output", "blocks", "parameters", "GMAC", "activations"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in parts:
        shape = "x".join(str(n) for n in part.shape)
        figures = (f"{part.parameters:,}", gigas(part.macs), f"{part.activation_bytes / 2**20:,.1f} MiB")
        table.add_row(part.name, shape, str(part.blocks or ""), *figures)
    table.add_section()
    memory = f"{totals.activation_bytes / 2**20:,.1f} MiB"
    count = str(sum(p.blocks for p in parts))
    table.add_row("total", "", count, f"{totals.parameters:,}", gigas(totals.macs), memory, style="bold")
    console.print(table)
    if layers:
        _by_layer(console, parts)
    console.print(
        "A MAC is one multiply-add, two FLOP. Activations: what training keeps for the backward pass.", style="dim"
    )
    return totals


def _by_layer(console: Console, parts: list[PartCost]) -> None:
    table = Table()
    table.add_column("layer", no_wrap=True)
    for heading in ("output", "parameters", "MMAC", "backward", "kept, MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in parts:
        for layer in part.layers:
            if not (layer.parameters or layer.macs or layer.activation_bytes):
                continue
            shape = "x".join(str(n) for n in layer.shape)
            macs = (f"{count / 1e6:,.1f}" if count else "" for count in (layer.macs, layer.backward_macs))
            kept = f"{layer.activation_bytes / 2**20:,.1f}" if layer.activation_bytes else ""
            table.add_row(layer.name, shape, f"{layer.parameters:,}" if layer.parameters else "", *macs, kept)
        table.add_section()
    console.print(table)


def list_presets(console: Console, contains: str) -> None:
    """Print every preset whose name contains the given text: depth, parameters, GMAC at its usual image size."""
    chosen = {name: config for name, config in PRESETS.items() if contains in name}
    if not chosen:
        raise ConfigError(f"no preset's name contains {contains!r}; 'residuum presets' lists all")
    table = Table("preset")
    for heading in ("depth", "parameters", "GMAC", "image"):
        table.add_column(heading, justify="right")
    for name, config in chosen.items():
        size = usual_image_size(name)
        parts = cost(
            config, size, batch_size=2, by_layer=False
        )  # one image would leave batch norm a single pixel in the smallest ones
        parameters, macs = sum(p.parameters for p in parts), sum(p.macs for p in parts) // 2
        table.add_row(name, str(config.depth), f"{parameters:,}", gigas(macs), f"{size[0]}x{size[1]}")
    console.print(table)
