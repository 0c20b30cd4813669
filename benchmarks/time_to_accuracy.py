"""Time to an accuracy on CIFAR-10: a recipe of this package, and the usual script, in turns on the same machine.

python -m benchmarks.time_to_accuracy CIFAR --line 85 --seeds 5

CIFAR is a folder of image folders, `train/CLASS` and `test/CLASS`. Ours is the whole command `residuum train` with a
fixed schedule, from its start to its end, once for each seed from 0 on; it counts as there if the mean over all seeds
is. The other is `benchmarks.classic_cifar`: its clock runs in training alone and stops after the first epoch that is
there on the test images, which its schedule could not know. It is given up after `--most` seconds, and the ratio is
then a lower bound. Between its epochs ours run, one whenever it has used more time than they.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.classic_cifar import training
from scipy import stats


def ours(folder: Path, seeds: int, flags: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Of each seed the seconds of the whole command and the accuracy on the test images."""
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "run"
            line = [sys.executable, "-m", "residuum", "train", "--data", str(folder), *flags]
            line += ["--data.holdout", "0", "--seed", str(seed), "--out", str(out)]
            begin = time.perf_counter()
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - begin
            accuracy = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
        print(f"ours, seed {seed}: {seconds:.0f} s, test {100 * accuracy:.2f} %", flush=True)
        yield seconds, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--line", type=float, default=85.0, help="accuracy in %%")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--flags", default="--recipe fast-cifar", help="of `residuum train`")
    parser.add_argument("--most", type=float, default=36_000.0, help="seconds of the other's training")
    asked = parser.parse_args()
    found: list[tuple[float, float]] = []
    runs = ours(asked.folder, asked.seeds, asked.flags.split())
    spent, there = 0.0, False
    for epoch, (seconds, accuracy) in enumerate(training(asked.folder, 200), 1):
        spent, there = spent + seconds, 100 * accuracy >= asked.line
        print(f"classic, epoch {epoch}: {spent:.0f} s, test {100 * accuracy:.2f} %", flush=True)
        while spent > sum(s for s, _ in found) and (run := next(runs, None)):
            found.append(run)
        if there or spent > asked.most:
            break
    found += runs
    times, accuracies = [s for s, _ in found], [100 * a for _, a in found]
    mean, each = sum(accuracies) / len(found), sum(times) / len(found)
    low, high = stats.t.interval(0.95, len(found) - 1, mean, stats.sem(accuracies)) if len(found) > 1 else (mean, mean)
    print(f"{os.cpu_count()} cores; ours: mean {mean:.2f} % ({low:.2f} to {high:.2f}) in {each:.0f} s")
    print(f"classic: {'' if there else 'not there after '}{spent:.0f} s")
    print(f"ratio {'' if there else 'at least '}{spent / each:.1f}")


if __name__ == "__main__":
    main()
