"""Plans for budgets from the least to the most, and the uniform modes: predicted and measured peak and slowdown.

Run `python benchmarks/plans.py [--model resnet152] [--batch-size 8] [--budgets 6] [--rounds 9]`. CPU, bf16 autocast,
channels-last, SGD with momentum.

The peak is of all tensors of a step, as a plan's is: parameters, buffers, momentum and images by their size, the rest
as counted by storage at the dispatcher. The time is of forward and backward pass. All share one process and network,
and take turns, in each of which one step goes before the one that is timed; a slowdown is the median over the rounds of
the ratio to the plain step of that round. A plan is called slower than a uniform mode where three quarters of the
rounds say so.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import residuum
from residuum.bench.machine import describe
from residuum.devices import keep_freed_memory
from residuum.memory import MODES, Live, Plan, Planner, choose_in_place
from residuum.presets import usual_image_size


class Step:
    """A training step, on one batch."""

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        config = residuum.preset(name)
        self.model = residuum.create(config).to(memory_format=torch.channels_last)
        choose_in_place(self.model, torch.device("cpu"), torch.bfloat16)  # as training does
        self.size = usual_image_size(name)
        self.images = torch.randn(batch, config.in_channels, *self.size).to(memory_format=torch.channels_last)
        self.labels = torch.randint(config.num_classes, (batch,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def passes(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = self.model(self.images)
        nn.functional.cross_entropy(logits.float(), self.labels, label_smoothing=0.1).backward()

    def seconds(self) -> float:
        begin = time.perf_counter()
        self.passes()
        return time.perf_counter() - begin

    def peak(self) -> int:
        """Bytes; there has been a step before, so that momentum is there."""
        self.optimizer.zero_grad()
        momentum = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        always = [*self.model.parameters(), *self.model.buffers(), *momentum, self.images, self.labels]
        with Live() as live:
            live.leave_out(always)
            self.passes()
            self.optimizer.step()
        return live.peak + sum(tensor.nbytes for tensor in always)


def quartiles(ratios: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet152")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--budgets", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    step = Step(options.model, options.batch_size)
    begin = time.perf_counter()
    planner = Planner(step.model, image_size=step.size, dtype=torch.bfloat16)
    uniform = [planner.uniform(options.batch_size, mode) for mode in MODES]
    took = time.perf_counter() - begin
    budgets = np.linspace(planner.least(options.batch_size), uniform[0].peak, options.budgets).astype(int).tolist()
    plans: list[Plan] = [*uniform, *(planner.plan(options.batch_size, budget) for budget in budgets)]
    step.passes()
    step.optimizer.step()
    peaks = []
    for plan in plans:
        plan.apply(step.model)
        step.passes()
        peaks.append(step.peak())
    times: list[list[float]] = [[] for _ in plans]
    for number in range(options.rounds):
        order = range(len(plans)) if number % 2 else reversed(range(len(plans)))
        for i in order:
            plans[i].apply(step.model)
            step.passes()
            times[i].append(step.seconds())
    title = f"{options.model}, batch {options.batch_size}, planned in {took:.1f} s: {describe('cpu')}"
    table = Table("plan", title=title, title_justify="left")
    for heading in ("peak: predicted, MB", "measured, MB", "slowdown: predicted", "measured", "quartiles"):
        table.add_column(heading, justify="right")
    table.add_column("to the fastest mode that fits")
    for i, (plan, peak) in enumerate(zip(plans, peaks, strict=True)):
        low, middle, high = quartiles([mine / plain for mine, plain in zip(times[i], times[0], strict=True)])
        name, verdict = (MODES[i], "") if i < len(MODES) else (f"{budgets[i - len(MODES)] / 1e6:.1f} MB", "none fits")
        fitting = [j for j in range(len(MODES)) if i >= len(MODES) and peaks[j] <= budgets[i - len(MODES)]]
        if fitting:
            best = min(fitting, key=lambda j: statistics.median(times[j]))
            bottom, ratio, top = quartiles([mine / his for mine, his in zip(times[i], times[best], strict=True)])
            word = "slower" if bottom > 1 else "no slower"
            verdict = f"{ratio:.3f} ({bottom:.3f} to {top:.3f}) of {MODES[best]}: {word}"
        if i >= len(MODES) and peak > budgets[i - len(MODES)]:
            verdict = f"OVER BUDGET; {verdict}"
        figures = (f"{plan.peak / 1e6:.2f}", f"{peak / 1e6:.2f}", f"{plan.slowdown:.3f}", f"{middle:.3f}")
        table.add_row(name, *figures, f"{low:.3f} to {high:.3f}", verdict)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
