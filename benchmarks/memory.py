"""Peak memory and speed of a training step under each recomputation mode, against torchvision's plain network.

Run `python benchmarks/memory.py [--model resnet50] [--batch 32] [--rounds 9]`. CPU, bf16 autocast, channels-last.

The peak is of live tensor bytes, counted by storage at the dispatcher, in one step: parameters and their gradients are
left out. Beside it stands how much the process's resident memory grew over what it was before the first step. Each
contender lives in a process of its own, and they take turns; a ratio is the median of the rounds' paired ratios.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

import residuum
from residuum.bench.machine import describe
from residuum.devices import keep_freed_memory
from residuum.memory import MODES, Live, recompute
from residuum.presets import usual_image_size


def serve(contender: str, name: str, batch: int, pipe: Any) -> None:
    """Answer with the peak and the growth of one step, then take timed turns of one step whenever asked."""
    keep_freed_memory()
    torch.manual_seed(0)
    config = residuum.preset(name)
    if contender in MODES:
        model: nn.Module = recompute(residuum.create(config), contender)
    elif name in torchvision.models.list_models():
        model = torchvision.models.get_model(name)
    else:
        model = residuum.create(config)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, *usual_image_size(name)).to(memory_format=torch.channels_last)
    labels = torch.randint(config.num_classes, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()  # from here on gradients are there, and are added to
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    with Live() as live:
        live.leave_out([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())])
        step()
    pipe.send((live.peak, grown))
    while pipe.recv():
        begin = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    contenders = ["rival", *MODES]
    pipes, processes, sizes = [], [], []
    for contender in contenders:
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(contender, options.model, options.batch, there)))
        processes[-1].start()
        pipes.append(here)
        sizes.append(here.recv())  # one after the other: none disturbs another's peak
    times: list[list[float]] = [[] for _ in contenders]
    for number in range(options.rounds + 1):
        order = range(len(contenders)) if number % 2 else reversed(range(len(contenders)))
        for i in order:
            pipes[i].send(True)
            seconds = pipes[i].recv()
            if number:
                times[i].append(seconds)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    table = Table("contender", title=f"{options.model}, batch {options.batch}: {describe('cpu')}", title_justify="left")
    for heading in ("peak, MiB", "of rival's", "resident growth, MiB", "images/s", "of rival's", "quartiles"):
        table.add_column(heading, justify="right")
    for contender, (peak, grown), mine in zip(contenders, sizes, times, strict=True):
        low, ratio, high = statistics.quantiles((a / b for a, b in zip(times[0], mine, strict=True)), n=4)
        speed = options.batch / statistics.median(mine)
        figures = (f"{peak / 2**20:.0f}", f"{peak / sizes[0][0]:.3f}", f"{grown / 2**20:.0f}", f"{speed:.1f}")
        table.add_row(contender, *figures, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
