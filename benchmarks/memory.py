"""Peak memory and speed of a training step under each mode of activation checkpointing, against torchvision's network.

Run `python benchmarks/memory.py [--model resnet50] [--batch-size 32] [--rounds 9]`. CPU, bf16 autocast, channels-last.

It measures as `residuum bench` does, each contender in a process of its own, but the step that `residuum train` takes:
no copies of weights in bf16 are kept through the pass, and freed memory stays with the process. The peak is of live
tensor bytes, counted by storage at the dispatcher, in one step: parameters and their gradients are left out. Beside it
stands how much the process's resident memory grew in its first step. A ratio is the median of the rounds' ratios.
"""

import argparse
import statistics

import torch
import torchvision
from rich.console import Console
from torch import nn

import residuum
from residuum.bench.contenders import REFERENCES, Contender
from residuum.bench.machine import describe
from residuum.bench.measure import measure
from residuum.bench.steps import Step
from residuum.bench.steps import prepare as usual
from residuum.bench.workloads import Workload
from residuum.devices import set_up
from residuum.memory import MODES, recompute
from residuum.presets import usual_image_size
from residuum.report.tables import Table, print_table


def rival(model: str) -> str:
    """Torchvision's network where it has one, else our own with nothing recomputed."""
    return "torchvision" if model in torchvision.models.list_models() else "plain"


def prepare(contender: Contender, workload: Workload) -> Step:
    """The forward and backward pass of a contender."""
    if contender.name in REFERENCES:
        return usual(contender, workload)
    set_up(torch.device("cpu"))
    torch.manual_seed(0)
    config = residuum.preset(workload.model)
    if contender.name == "torchvision":
        model = torchvision.models.get_model(workload.model)
    else:
        model = residuum.create(config)
        if contender.name in MODES:
            recompute(model, contender.name)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(workload.batch_size, 3, *workload.image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(config.num_classes, (workload.batch_size,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()

    def tensors() -> list[torch.Tensor]:
        return [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]

    return Step(step, step, tensors, "bf16")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    size = usual_image_size(options.model)
    workload = Workload(options.model, "train", "bf16", "channels-last", "eager", options.batch_size, size)
    contenders = [Contender(name) for name in (rival(options.model), *MODES)]
    [result] = measure([workload], [contenders], 1, options.rounds, torch.get_num_threads(), prepare=prepare)
    first = result.rows[0]
    headings = ("contender", "peak, MiB", "of rival's", "resident growth, MiB", "images/s", "of rival's", "quartiles")
    rows = []
    for row in result.measured():
        pairs = zip(first.times[0], row.times[0], strict=True)
        low, ratio, high = statistics.quantiles((theirs / mine for theirs, mine in pairs), n=4)
        figures = (f"{row.peak / 2**20:.0f}", f"{row.peak / first.peak:.3f}", f"{(row.grown or 0) / 2**20:.0f}")
        spread = "" if row is first else f"{low:.3f} to {high:.3f}"
        speeds = (f"{result.speed(row):.1f}", f"{ratio:.3f}", spread)
        rows.append((row.contender, *figures, *speeds))
    note = f"{describe('cpu')} " + " ".join(f"{row.contender}: {row.error}." for row in result.rows if row.error)
    print_table(Console(width=150), Table(str(workload), headings, tuple(rows), note))


if __name__ == "__main__":
    main()
