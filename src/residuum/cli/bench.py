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
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PRESET ...")] = ("resnet50",)
    # networks that take part: residuum, residuum:selective, residuum:block and residuum:stage (activation
    # checkpointing), residuum:auto (what 'residuum train' and 'residuum predict' do by themselves), torchvision, timm,
    # transformers, and your own as NAME=MODULE:CALLABLE or NAME=FILE.py:CALLABLE
    contenders: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: each installed library, and residuum:auto)"),
    ] = ()
    # name of the contender that the others' speeds are divided by
    baseline: str = "torchvision"
    # what is timed: train is a whole training step with SGD, infer a forward pass without gradients
    tasks: Annotated[tuple[Literal["train", "infer"], ...], tyro.conf.arg(metavar="{train,infer} ...")] = (
        "train",
        "infer",
    )
    # precisions of convolutions; bf16 is by autocast
    precisions: Annotated[
        tuple[Literal["fp32", "bf16"], ...],
        tyro.conf.arg(
            metavar="{fp32,bf16} ...", help_behavior_hint="(default: fp32, and bf16 where the device computes it)"
        ),
    ] = ()
    # memory formats of images and weights
    memory_formats: Annotated[
        tuple[Literal["nchw", "channels-last"], ...],
        tyro.conf.arg(
            metavar="{nchw,channels-last} ...",
            help_behavior_hint="(default: nchw for fp32, channels-last for bf16)",
        ),
    ] = ()
    # ways to run the step: as it is, by torch.compile, or as one CUDA graph
    modes: Annotated[
        tuple[Literal["eager", "compiled", "graph"], ...], tyro.conf.arg(metavar="{eager,compiled,graph} ...")
    ] = ("eager",)
    # numbers of images in a step
    batch_sizes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = (2,)
    # height and width of the images in pixels
    image_size: Annotated[
        tuple[int, int] | None,
        tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint="(default: the usual ones of each preset)"),
    ] = None
    # number of times that everything is measured in new processes; an interval takes at least 2
    repetitions: int = 3
    # number of times that each contender is timed in a repetition
    rounds: int = 2
    # device to measure on: cpu, cuda, cuda:1, ...; auto is the accelerator if there is one, else the CPU
    device: str = "auto"
    # number of threads on the CPU; 0 leaves it to torch
    threads: int = 0
    # folder to make for the report
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER", help_behavior_hint="(default: the first of runs/bench-1, runs/bench-2, ... that is free)"
        ),
    ] = None
    # two report.json to set side by side, the older first: what became slower; nothing is measured
    compare: Annotated[
        tuple[Path, Path] | None, tyro.conf.arg(metavar="A.json B.json", help_behavior_hint="(default: measure)")
    ] = None


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
