"""What the first image of a size costs in an exported file that scales by itself, and what the next ones cost.

    python -m benchmarks.new_sizes

Exports resnet18 with the preprocessing of ImageNet, input `image`, for ONNX Runtime and OpenVINO, and prints seconds
for the first image of each size and the median of five more of that size. Runtimes prepare what depends on the size
when they see it first.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from residuum import create
from residuum.export import export
from residuum.preprocessing import IMAGENET
from residuum.runtimes.exported import opened

SIZES = ((300, 400), (375, 500), (376, 500), (600, 800), (1500, 2000))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = create("resnet18").eval()
    model.preprocessing = IMAGENET
    print(f"{'':8}" + "".join(f"{f'{height}x{width}':>18}" for height, width in SIZES))
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".onnx", ".xml"):
            path = Path(folder) / f"net{ending}"
            export(model, path, input="image")
            file = opened(path)
            file(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))  # whatever is made ready once
            cells = []
            for height, width in SIZES:
                images = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
                first, *others = (seconds(file, images) for _ in range(6))
                cells.append(f"{first:8.3f} {statistics.median(others):8.3f}")
            print(f"{ending:8}" + "".join(f"{cell:>18}" for cell in cells))


def seconds(file: object, images: torch.Tensor) -> float:
    start = time.perf_counter()
    file(images)  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
