"""What 8-bit integers cost trained networks and what they give: `python benchmarks/quantisation.py RUN...`

    python benchmarks/quantisation.py runs/digits-1 runs/cifar-1
    python benchmarks/quantisation.py --speed --threads 2

For each run folder of `residuum train`, and each way to find the ranges of activations: top-1 on the run's test images
before and after, their paired difference with its 95 % interval, on how many images both say the same class, and the
mean over blocks of signal to quantisation noise. The default of a runtime is the way with the highest mean signal to
noise over the trained networks, among those that lose no more accuracy than their interval explains; ways within 1 dB
count as equal, and then it is the first, which keeps no values in memory.

`--speed` measures resnet50 with random weights at 224x224 instead: images/s of the int8 network and of the float one as
the same runtime runs it (in bf16 where the processor has instructions for it), in turns.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console

import residuum
from residuum import Preprocessing
from residuum.data.catalog import scan
from residuum.data.settings import DataSettings
from residuum.data.sources import open_dataset
from residuum.devices import processor
from residuum.export.int8 import calibration, gate, quantize
from residuum.export.int8.capture import captured
from residuum.export.int8.gate import METHODS, NETWORKS, dot_products, speed
from residuum.files import cache_folder
from residuum.report.tables import Table, markdown
from residuum.validation import parse_toml

BATCHES = (8, 1)


def accuracy(run: Path, count: int, threads: int | None) -> Iterator[tuple[str, ...]]:
    """A row for each way."""
    model = residuum.load(run).eval()
    settings = DataSettings(**parse_toml((run / "recipe.toml").read_text())["data"])
    dataset = open_dataset(scan(settings.path), settings, channels=model.config.in_channels, cache=cache_folder())
    assert model.preprocessing is not None and dataset.test is not None
    chosen = calibration(dataset.train, model.preprocessing, count=count)
    for runtime, methods in METHODS.items():
        for method in methods:
            found = quantize(
                model, chosen, dataset.test, runtime=runtime, method=method, max_drop=100.0, threads=threads
            ).report
            low, high = found.paired.interval
            before, after = (100 * value for value in found.to_dict()["accuracy"].values())
            yield (
                f"{run.name}, {runtime} {method}", f"{before:.2f}", f"{after:.2f}",
                f"{100 * found.paired.difference:+.2f}, {100 * low:+.2f} to {100 * high:+.2f}",
                f"{100 * found.agreement:.2f}", f"{mean(block.whole for block in found.blocks):.1f}",
                f"{mean(block.own for block in found.blocks):.1f}", f"{found.logits:.1f}",
                f"{found.int8_bytes / found.float_bytes:.2f}",
            )  # fmt: skip


def speeds(preset: str, size: int, threads: int | None) -> Iterator[tuple[str, ...]]:
    """A row for each runtime and batch."""
    torch.manual_seed(0)
    model = residuum.create(preset).eval()
    model.preprocessing = Preprocessing(3, (size, size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875)
    program, tapped = captured(model, (size, size))
    images = torch.randn(32, 3, size, size, generator=torch.Generator().manual_seed(0))
    for runtime, make in NETWORKS.items():
        network: Any = make(program, tapped.names)
        made = network.quantized(list(images.split(8)), method=METHODS[runtime][0], reduced=not dot_products())
        plain, eight = network.session(network.model, threads), network.session(made, threads)
        for batch in BATCHES:
            found = speed(plain, eight, images, batch)
            yield (
                f"{runtime}, batch {batch}", plain.precision, f"{found.float32:.1f}", f"{found.int8:.1f}",
                f"{found.int8 / found.float32:.2f}",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--images", type=int, default=300, help="images for calibration")
    parser.add_argument("--speed", action="store_true", help="measure the speed of a preset instead")
    parser.add_argument("--preset", default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images of --speed")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which each pair of --speed is measured")
    parser.add_argument("--threads", type=int, help="threads that compute; the runtime's choice where left out")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    gate.SECONDS = given.seconds if given.speed else 0.1
    told = f"{processor()}; {', '.join(dot_products()) or 'no VNNI, weights of 7 bits'}"
    if given.speed:
        rows = tuple(speeds(given.preset, given.size, given.threads))
        headings: tuple[str, ...] = ("runtime", "float in", "float images/s", "int8 images/s", "ratio")
        table = Table(f"{given.preset} at {given.size}x{given.size}", headings, rows, told)
    else:
        rows = tuple(row for run in given.runs for row in accuracy(run, given.images, given.threads))
        headings = ("network and way", "top-1 %", "int8 %", "difference, points", "same class %", "dB", "own dB",
                    "logits dB", "size")  # fmt: skip
        table = Table(f"int8 from {given.images} images", headings, rows, told)
    Console(soft_wrap=True).print(markdown(table), markup=False, highlight=False)


if __name__ == "__main__":
    main()
