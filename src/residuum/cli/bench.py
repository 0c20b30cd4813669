"""`residuum bench`: this package beside others."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.train.run import free_folder


@dataclass(frozen=True)
class Bench:
    """Compare brute force, residuum, torchvision, timm and transformers: speed, memory, lines of code."""

    # networks to compare; 'residuum presets' lists them
    models: tuple[str, ...] = ("resnet50",)
    # brute_force, residuum, residuum:selective, residuum:block, residuum:stage, residuum:auto (what 'residuum train'
    # and 'predict' do by themselves), torchvision, timm, transformers; those that are installed where left out
    contenders: tuple[str, ...] = ()
    # whose speed is 1
    baseline: str = "torchvision"
    # a whole training step, a forward pass without gradients
    tasks: tuple[Literal["train", "infer"], ...] = ("train", "infer")
    # bf16 is autocast's; fp32, and bf16 where the device computes it, where left out
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    # memory format of images and weights; nchw for fp32 and channels-last for bf16 where left out
    layouts: tuple[Literal["nchw", "channels-last"], ...] = ()
    # as it is, by torch.compile, or the whole step as a CUDA graph
    modes: tuple[Literal["eager", "compiled", "graph"], ...] = ("eager",)
    # images in a step
    batch_sizes: tuple[int, ...] = (2,)
    # height and width of the images; the network's usual one where left out
    size: tuple[int, int] | None = None
    # times that all get ready anew, at least 2
    sittings: int = 3
    # turns that each takes in a sitting
    rounds: int = 2
    # cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"
    # of the CPU; torch's choice where 0
    threads: int = 0
    # folder for the report; runs/bench-N where left out
    out: Path | None = None
    # only count lines of code
    lines: bool = False
    # two report.json: what got slower from the first to the second
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="A.json B.json")] = None


def run(command: Bench, console: Console) -> int:
    """Compare, count lines, or set two reports side by side."""
    from residuum.bench import run as comparison

    if command.compare is not None:
        comparison.compare_reports(*command.compare, console)
        return 0
    contenders = comparison.contenders_of(command.contenders, command.baseline)
    if command.lines:
        comparison.print_lines(contenders, console)
        return 0
    from residuum.devices import pick_device

    cells = comparison.cells_of(
        command.models,
        command.tasks,
        command.precisions,
        command.layouts,
        command.modes,
        command.batch_sizes,
        command.size,
        pick_device(command.device),
    )
    comparison.bench(
        cells,
        contenders,
        command.baseline,
        sittings=command.sittings,
        rounds=command.rounds,
        threads=command.threads,
        out=command.out or free_folder(Path("runs"), "bench"),
        command=shlex.join(["residuum", *sys.argv[1:]]),
        console=console,
    )
    return 0
