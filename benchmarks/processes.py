"""Images a second of one process with two threads and of two processes with one thread each, in turns.

python benchmarks/processes.py --rounds 7
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {"1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def images_per_second(processes: int, threads: int, arguments: list[str]) -> float:
    """Of the last epoch of a run, its evaluation left out."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m"]
        if processes > 1:
            launch += ["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "-m"]
        command = [*launch, "residuum", "train", *arguments, "--no-test", "--out", f"{folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        row = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = row["seconds"] - row.get("seconds_evaluate", 0.0) - row.get("seconds_save", 0.0)
    return row["images_per_second"] * row["seconds"] / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--arguments", default="--model cifar_resnet20 --epochs 2 --batch-size 256 --norm-batch 128")
    given = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            found[way].append(images_per_second(*WAYS[way], given.arguments.split()))
    one, two = (found[way] for way in WAYS)
    for way, values in found.items():
        print(f"{way:28} {statistics.median(values):8.1f} images/s")
    ratios = sorted(b / a for a, b in zip(one, two, strict=True))
    print(f"ratio {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f} over {len(ratios)} rounds")


if __name__ == "__main__":
    main()
