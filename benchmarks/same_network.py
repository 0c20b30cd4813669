"""Images a second that ResNet-20 for CIFAR is trained with: by this package as it comes, and by the usual script.

python -m benchmarks.same_network CIFAR --rounds 5

CIFAR is a folder of image folders, `train/CLASS` and `test/CLASS`. In each round an epoch of `classic_cifar`, in fp32
with two workers, comes beside a run of `residuum train` with the same network, batch, optimizer and augmentation in the
precision that it chooses, of which the second epoch counts. Evaluation counts for neither.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.classic_cifar import training

LINE = ("--recipe", "he2015-cifar", "--model", "cifar_resnet20", "--batch-size", "128", "--data.holdout", "0")


def ours(folder: Path) -> float:
    """Images a second of the second epoch of a run."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        line = [sys.executable, "-m", "residuum", "train", "--data", str(folder), *LINE]
        subprocess.run([*line, "--epochs", "2", "--no-test", "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        return float(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["images_per_second"])


def theirs(folder: Path) -> Iterator[float]:
    """Images a second of each epoch of the usual script."""
    count = sum(1 for _ in (folder / "train").glob("*/*"))
    for seconds, _ in training(folder, 200):
        yield count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    usual = theirs(asked.folder)
    next(usual)  # warms up
    found: list[tuple[float, float]] = []
    for number in range(asked.rounds):
        if number % 2:
            other = next(usual)
            found.append((ours(asked.folder), other))
        else:
            found.append((ours(asked.folder), next(usual)))
        print("ours {:,.0f}, the usual script {:,.0f} images/s".format(*found[-1]), flush=True)
    ratios = [own / other for own, other in found]
    middle = [statistics.median(column) for column in zip(*found, strict=True)]
    print(f"{os.cpu_count()} cores; medians: ours {middle[0]:,.0f}, the usual script {middle[1]:,.0f} images/s")
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
