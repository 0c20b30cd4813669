"""Images a second that ResNet-20 for CIFAR is trained with: by this package as it comes, and by the usual script.

python -m benchmarks.same_network CIFAR --rounds 5

CIFAR is a folder of image folders, `train/CLASS` and `test/CLASS`. In each round an epoch of `classic_cifar`, in fp32
with two workers, comes beside a run of `residuum train` with the same network, batch, optimizer and augmentation in the
precision that it chooses, of which the second epoch counts. Evaluation and saving count for neither.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from benchmarks.classic_cifar import training
from benchmarks.processes import images_per_second

LINE = ("--recipe", "he2015-cifar", "--model", "cifar_resnet20", "--batch-size", "128", "--data.holdout", "0")


def usual(folder: Path) -> Iterator[float]:
    """Images a second of each epoch of the usual script."""
    count = sum(1 for _ in (folder / "train").glob("*/*"))
    for seconds, _ in training(folder, 200):
        yield count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    line, script = ["--data", str(asked.folder), *LINE, "--epochs", "2"], usual(asked.folder)
    next(script)  # warms up
    ways: dict[str, Callable[[], float]] = {
        "residuum": partial(images_per_second, 1, torch.get_num_threads(), line),
        "the usual script": partial(next, script),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(asked.rounds):
        for way in sorted(ways, reverse=bool(number % 2)):
            found[way].append(ways[way]())
            print(f"{way:20}{found[way][-1]:8,.0f} images/s", flush=True)
    ratios = [one / other for one, other in zip(*found.values(), strict=True)]
    middle = ", ".join(f"{way} {statistics.median(speeds):,.0f} images/s" for way, speeds in found.items())
    print(f"{os.cpu_count()} cores; medians: {middle}")
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
