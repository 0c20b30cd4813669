"""What fine-tuning from few images reaches: `python benchmarks/finetuning.py FOLDER`, a folder of small images.

    python benchmarks/finetuning.py CIFAR --images 20 --seeds 3

Half of the classes below FOLDER/train and FOLDER/test, every second one, are the source: the default network for them
is trained on them, by its recipe in fewer epochs. From its weights others are fine-tuned on a few images of each of the
remaining classes, other images for each seed, by the defaults and by ways that differ in a field, and one is trained on
the same images from nothing, as `residuum train --data` does by itself. Prints the mean accuracy on 400 test images of
each class and, of each way, the 95 % interval over the seeds of its gain over the defaults.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from residuum.train import Execution, Recipe, fit

WAYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr 0.003": {"optimizer.lr": 0.003},
    "lr 0.03": {"optimizer.lr": 0.03},
    "lr 0.1": {"optimizer.lr": 0.1},
    "one lr for all blocks": {"optimizer.layer_decay": 1.0},
    "stem and first stage frozen": {"finetune.freeze": 2},
    "all but the head frozen": {"finetune.freeze": 4},
    "head from 0": {"finetune.head": "zero"},
}


def linked(folder: Path, root: Path, classes: Sequence[str], train: slice, test: slice) -> Path:
    """A folder of some classes, with those of the images of each."""
    for split, chosen in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for file in sorted((folder / split / name).iterdir())[chosen]:
                (root / split / name / file.name).symlink_to(file.absolute())
    return root


def accuracy(recipe: Recipe, out: Path) -> float:
    """On the test split, after training into `out`."""
    found: float = fit(recipe, out=out, execution=Execution(workers=0), callbacks=[]).metrics["test_accuracy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20, help="of each class to fine-tune on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--source-epochs", type=int, default=4)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS), help="that differ in a field")
    asked = parser.parse_args()
    ways = {"defaults": WAYS["defaults"]} | {way: WAYS[way] for way in asked.ways}
    names = sorted(p.name for p in (asked.folder / "train").iterdir() if p.is_dir())
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        source = linked(asked.folder, work / "source", names[::2], slice(None), slice(None))
        first = Recipe.default(str(source)).replace(epochs=asked.source_epochs)
        print(f"source: {100 * accuracy(first, work / 'weights'):.1f} %", flush=True)
        found: dict[str, list[float]] = {}
        for seed in range(asked.seeds):
            few = slice(seed * asked.images, (seed + 1) * asked.images)
            data = str(linked(asked.folder, work / f"target-{seed}", names[1::2], few, slice(400)))
            common: dict[str, Any] = {"seed": seed, "data.holdout": 0.0}
            tuned = Recipe.default(data, weights=work / "weights").replace(common)
            for way, changes in ways.items():
                found.setdefault(way, []).append(accuracy(tuned.replace(changes), work / f"{way}-{seed}"))
            new = Recipe.default(data, holdout=0.0).replace(common)
            found.setdefault("from nothing", []).append(accuracy(new, work / f"-{seed}"))
            print(f"seed {seed} done", flush=True)
    print("| way | accuracy, % | gain over the defaults, points |\n| --- | ---: | ---: |")
    for way, values in found.items():
        gains = [100 * (value - usual) for value, usual in zip(values, found["defaults"], strict=True)]
        low, high = stats.t.interval(0.95, len(gains) - 1, sum(gains) / len(gains), max(float(stats.sem(gains)), 1e-9))
        text = "" if way == "defaults" else f"{low:.1f} to {high:.1f}"
        print(f"| {way} | {100 * sum(values) / len(values):.1f} | {text} |")


if __name__ == "__main__":
    main()
