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
    """Compare residuum with torchvision, timm, transformers and networks of your own: speed and memory."""

    # names of the presets whose networks are compared; 'residuum presets' lists them all
    models: tuple[str, ...] = ("resnet50",)
    # networks that take part: residuum, residuum:selective, residuum:block and residuum:stage (activation
    # checkpointing), residuum:auto (what 'residuum train' and 'residuum predict' do by themselves), torchvision, timm,
    # transformers, and your own as NAME=MODULE:CALLABLE or NAME=FILE.py:CALLABLE; by default each library that is
    # installed, and residuum:auto
    contenders: tuple[str, ...] = ()
    # name of the contender that the others' speeds are divided by
    baseline: str = "torchvision"
    # what is timed: train is a whole training step with SGD, infer a forward pass without gradients
    tasks: tuple[Literal["train", "infer"], ...] = ("train", "infer")
    # precisions of convolutions, bf16 by autocast; by default fp32, and bf16 where the device computes it
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    # memory formats of images and weights; by default nchw for fp32 and channels-last for bf16
    memory_formats: tuple[Literal["nchw", "channels-last"], ...] = ()
    # ways to run the step: as it is, by torch.compile, or as one CUDA graph
    modes: tuple[Literal["eager", "compiled", "graph"], ...] = ("eager",)
    # numbers of images in a step
    batch_sizes: tuple[int, ...] = (2,)
    # height and width of the images in pixels; by default the usual ones of each preset
    image_size: tuple[int, int] | None = None
    # number of times that everything is measured in new processes; an interval takes at least 2
    repetitions: int = 3
    # number of times that each contender is timed in a repetition
    rounds: int = 2
    # device to measure on: cpu, cuda, cuda:1, ...; auto is the accelerator if there is one, else the CPU
    device: str = "auto"
    # number of threads on the CPU; 0 leaves it to torch
    threads: int = 0
    # folder to make for the report; by default the first of runs/bench-1, runs/bench-2, ... that is free
    out: Path | None = None
    # two report.json to set side by side, the older first: what became slower; nothing is measured
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="A.json B.json")] = None


def run(command: Bench, console: Console) -> int:
    """Measure and report, or set two reports side by side."""
    from residuum.bench import run as comparison

    if command.compare is not None:
        comparison.compare_reports(*command.compare, console)
        return 0
    from residuum.bench.contenders import contenders_of
    from residuum.bench.workloads import workloads_of
    from residuum.devices import pick_device

    effort = comparison.Effort(command.repetitions, command.rounds, command.threads)
    contenders = contenders_of(command.contenders, command.baseline)
    workloads = workloads_of(
        command.models,
        command.tasks,
        command.precisions,
        command.memory_formats,
        command.modes,
        command.batch_sizes,
        command.image_size,
        pick_device(command.device),
    )
    comparison.bench(
        workloads,
        contenders,
        command.baseline,
        effort,
        out=command.out or free_folder(Path("runs"), "bench"),
        command=shlex.join(["residuum", *sys.argv[1:]]),
        console=console,
    )
    return 0
