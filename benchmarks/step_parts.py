"""Where the time of a training step goes, by kind of layer, and what each would take at the best of the machine.

    python -m benchmarks.step_parts
    python -m benchmarks.step_parts --model resnet50 --batch-size 8 --steps 10

The step is that of `residuum train` on a CPU, in the precision that it chooses. In the forward and the backward pass
each operator that torch is asked for is timed; the figures are medians over the steps. The best of an operator is its
floating-point operations at the rate of a large product of matrices, or the bytes that it reads and writes, each tensor
once, at the rate of a large copy, whichever takes longer. Both rates are measured in the same run. Whole steps are
timed in turns with those that are looked at: what operators do not take is the optimizer, Python and autograd.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from residuum.bench.contenders import OUT_OF_THE_BOX, REFERENCES, Contender
from residuum.bench.steps import matrix_side, prepare
from residuum.bench.workloads import Workload
from residuum.presets import preset, usual_image_size
from residuum.report.tables import Table, print_table

# By what an operator's name holds, the first that fits.
_KINDS = {
    "batch_norm": "norm", "group_norm": "norm", "relu": "activation", "threshold": "activation", "pool": "pooling",
    "mean": "pooling", "mm": "classifier", "add": "addition", "copy": "cast or copy", "clone": "cast or copy",
}  # fmt: skip


def kind_of(name: str, args: tuple[Any, ...], channels: int) -> str:
    """The kind of layer that an operator is of."""
    way = "backward" if name.endswith("_backward") else "forward"
    if name.startswith("convolution"):
        images, weight, stride = (args[1], args[2], args[4]) if way == "backward" else (args[0], args[1], args[3])
        what = "stem" if images.shape[1] == channels else "x".join(map(str, weight.shape[2:]))
        grouped = ", grouped" if images.shape[1] != weight.shape[1] else ""
        return f"convolution {what}{', stride 2' if max(stride) > 1 and what != 'stem' else ''}{grouped}, {way}"
    kind = next((kind for part, kind in _KINDS.items() if part in name), "others")
    return f"{kind}, {way}" if kind in ("norm", "activation", "pooling") else kind


class Watch(TorchDispatchMode):
    """Seconds, floating-point operations and bytes of each operator, by kind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.found: list[tuple[str, float, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        begin = time.perf_counter()
        out = func(*args, **kwargs)
        seconds = time.perf_counter() - begin
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        kind = kind_of(func.overloadpacket.__name__, args, self.channels)
        self.found.append((kind, seconds, flops, 0 if func.is_view else _bytes((args, kwargs)) + _bytes(out)))
        return out


def _bytes(values: Any) -> int:
    tensors = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    size = usual_image_size(asked.model)
    workload = Workload(asked.model, "train", "fp32", "nchw", "eager", asked.batch_size, size)
    step = prepare(Contender(OUT_OF_THE_BOX), workload)
    reference = next(name for name, precision in REFERENCES.items() if precision == step.precision)
    product = prepare(Contender(reference), workload)
    left, right = (torch.ones(2**26, dtype=torch.bfloat16) for _ in range(2))

    def without_gradients(work: Callable[[], object]) -> float:
        """Seconds of work that begins with none, as a step does."""
        for tensor in step.tensors():
            tensor.grad = None
        return seconds_of(work)

    times: list[tuple[float, float, float]] = []
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(asked.steps + 2):
        whole = without_gradients(step.run)
        with Watch(preset(asked.model).in_channels) as watch:
            without_gradients(step.passes)
        if number < 2:  # warming up
            continue
        times.append((whole, seconds_of(product.run), seconds_of(lambda: left.copy_(right))))
        sums: dict[str, float] = defaultdict(float)
        for kind, took, _, _ in watch.found:
            sums[kind] += took
        for kind, took in sums.items():
            seconds[kind].append(took)
    whole, multiplied, copied = (statistics.median(column) for column in zip(*times, strict=True))
    flops_rate, bytes_rate = 2 * matrix_side("cpu") ** 3 / multiplied, 4 * left.numel() / copied
    best: dict[str, float] = defaultdict(float)
    for kind, _, flops, moved in watch.found:  # which are the same in each step
        best[kind] += max(flops / flops_rate, moved / bytes_rate)
    took_by = {kind: statistics.median(values) for kind, values in seconds.items()}
    lines = [(kind, took_by[kind], best[kind]) for kind in sorted(took_by, key=lambda kind: -took_by[kind])]
    lines.append(("all operators", sum(took_by.values()), sum(best.values())))
    rows = [
        (
            kind,
            f"{1000 * took:.1f}",
            f"{took / whole:.1%}",
            f"{1000 * least:.1f}",
            f"{took / least:.1f}" if least else "-",
        )
        for kind, took, least in lines
    ]
    rows.append(("the whole step", f"{1000 * whole:.1f}", "100.0%", "", ""))
    note = f"{flops_rate / 1e9:.0f} GFLOP/s in {step.precision}, {bytes_rate / 1e9:.1f} GB/s"
    columns = ("kind", "ms", "of the step", "best, ms", "times the best")
    print_table(Console(), Table(f"{workload.model}, batch {workload.batch_size}: {note}", columns, tuple(rows)))


if __name__ == "__main__":
    main()
