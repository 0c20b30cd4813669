"""Images per second from datasets of several kinds to augmented batches: `python benchmarks/loading.py DATA DATA ...`.

    residuum data pack PHOTOGRAPHS --out small.packed --size 256
    python benchmarks/loading.py PHOTOGRAPHS small.packed

Reads the training images of each as training on photographs does (a random crop of 224 x 224, mirrored), in turn, a few
seconds each. Prints medians, and the median of the ratios to the first. The main process has one
thread: with more, threads that wait for the next batch take the workers' cores.
"""

import argparse
import statistics
import time

import torch

from residuum.data.catalog import scan
from residuum.data.loaders import Loader, make_loader
from residuum.data.settings import Augmentation, DataSettings
from residuum.data.sources import open_dataset

BATCH, SECONDS = 25, 3.0


def loader_of(path: str, workers: int) -> Loader:
    """Training batches of a dataset."""
    settings = DataSettings(path=path, holdout=0.0, image_size=(224, 224))
    dataset = open_dataset(scan(path), settings, channels=3, cache=None)
    return make_loader(
        dataset.train, dataset.preprocessing, batch_size=BATCH, seed=0, train=True, device=torch.device("cpu"),
        augmentation=Augmentation(crop_scale=(0.08, 1.0), flip="random"), workers=workers, skip_bad_images=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="datasets of image files of any kind")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each (default 8)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaders = {path: loader_of(path, args.workers) for path in args.data}
    rates: dict[str, list[float]] = {path: [] for path in loaders}
    epoch = 0
    for number in range(args.rounds + 1):  # the first starts the workers and fills the page cache
        for path, loader in loaders.items():
            begin, images = time.perf_counter(), 0
            while time.perf_counter() - begin < SECONDS:
                images += sum(len(labels) for _, labels in loader.epoch(epoch))
                epoch += 1
            if number:
                rates[path].append(images / (time.perf_counter() - begin))
    first = rates[args.data[0]]
    for path, values in rates.items():
        ratio = statistics.median(b / a for a, b in zip(first, values, strict=True))
        spread = f"({min(values):.0f} to {max(values):.0f})"
        print(f"{path:40} {statistics.median(values):7.1f} images/s {spread:16} ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
