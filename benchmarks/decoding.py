"""Images per second from files to augmented batches, of two states of the code: `python benchmarks/decoding.py FOLDER`.

    python benchmarks/decoding.py PHOTOGRAPHS --other ../before/src --rounds 8

Reads every image below FOLDER as training does (decoded, a random crop, mirrored) with `--workers` processes, by this
state of the code and, in turn, by that of another checkout's `src`. Prints the medians and their ratio. The other state
may be one from before `residuum.data.decoding`: torchvision.io then decodes. With `--workers 0` processor time
counts in place of time that passes, which other work on the machine disturbs less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BATCH = 25


def measure(folder: str, workers: int, passes: int) -> float:
    """Images per second of some passes, after one that starts the workers and fills the page cache."""
    import time

    import torch

    paths = tuple(sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpeg", ".jpg", ".png")))
    common = {
        "batch_size": min(BATCH, len(paths)),
        "seed": 0,
        "train": True,
        "device": torch.device("cpu"),
        "workers": workers,
        "skip_bad_images": False,
    }
    now = time.perf_counter if workers else time.process_time
    labels = torch.zeros(len(paths), dtype=torch.long)
    usual = 3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875
    try:
        from residuum.data.loaders import make_loader
        from residuum.data.settings import Augmentation
        from residuum.data.sources import Split
        from residuum.preprocessing import Preprocessing

        try:
            augmentation = Augmentation(crop_scale=(0.08, 1.0), flip="random")
        except ValueError:  # from before mirrors could alternate
            augmentation = Augmentation(crop_scale=(0.08, 1.0), flip=True)
        loader = make_loader(Split(paths, labels), Preprocessing(*usual), augmentation=augmentation, **common)
    except ImportError:
        from residuum.data.batches import Augmentation, make_batches

        from residuum.data.sources import Part, Preprocessing

        loader = make_batches(Part(paths, labels), Preprocessing(*usual), augmentation=Augmentation(0, True), **common)

    def run(number: int) -> int:
        return sum(len(labels) for _, labels in loader.epoch(number))

    run(0)
    begin = now()
    seen = sum(run(number) for number in range(1, passes + 1))
    return seen / (now() - begin)


def main() -> None:
    """Compare two states of the code, in turn, in new processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder with images")
    parser.add_argument("--other", help="src of another checkout; left out, this one is measured against itself")
    parser.add_argument("--rounds", type=int, default=6, help="processes for each of the two (default 6)")
    parser.add_argument("--passes", type=int, default=2, help="passes over the folder in each process (default 2)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default 2)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.folder, args.workers, args.passes))
        return
    here = str(Path(__file__).parents[1] / "src")
    sources = {"here": here, "other": args.other or here}
    found: dict[str, list[float]] = {name: [] for name in sources}
    line = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).resolve()),
        str(Path(args.folder).resolve()),
        "--measure",
    ]
    line += ["--workers", str(args.workers), "--passes", str(args.passes)]
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.rounds):
            for name in sorted(sources, reverse=number % 2 == 1):
                path = str(Path(sources[name]).resolve())
                done = subprocess.run(
                    line, env=os.environ | {"PYTHONPATH": path}, cwd=scratch, capture_output=True, text=True, check=True
                )
                found[name].append(float(done.stdout))
    for name, values in found.items():
        print(f"{name:6} {statistics.median(values):7.1f} images/s  ({min(values):.1f} to {max(values):.1f})")
    ratios = [a / b for a, b in zip(found["here"], found["other"], strict=True)]
    print(f"ratio  {statistics.median(ratios):7.3f}           ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
