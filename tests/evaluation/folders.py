"""Run folders as training leaves them, without training."""

import json
import struct

from residuum.evaluation.runs import weights_digest
from residuum.train.environment import FILE
from residuum.train.recipe import Recipe
from residuum.train.run import DataRecord

HERE = {
    "residuum": "0.1.0", "code": "abc123", "torch": "2.14.1", "torchvision": "0.29.1", "python": "3.12.1",
    "device": "cpu", "processor": "X", "threads": 1,
}  # fmt: skip


def make_run(
    path, accuracies=(0.5, 0.9), *, epochs=None, digest="d" * 64, weights=None, here=None, test=None, **fields
):
    """A run of so many rows; `fields` are the recipe's, `weights` the bytes of its one tensor."""
    recipe = Recipe().replace({"precision": "fp32", "epochs": epochs or len(accuracies)} | fields)
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(recipe.to_toml())
    data = DataRecord(("cat", "dog"), {"train": {"cat": 3, "dog": 3}}, digest)
    (path / "data.json").write_text(data.to_json())
    if here is not False:
        (path / FILE).write_text(json.dumps([{"epoch": 0, **HERE, **(here or {})}]))
    rows = [
        {"epoch": n, "train_loss": 2.0 / n, "train_accuracy": value, "val_loss": 2.1 / n, "val_accuracy": value,
         "images_per_second": 100.0, "seconds": 3.0}
        for n, value in enumerate(accuracies, 1)
    ]  # fmt: skip
    if test is not None:
        rows[-1]["test_accuracy"] = test
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tensor = weights if weights is not None else str(path).encode().ljust(64)[-64:]
    header = json.dumps({
        "__metadata__": {"config": recipe.to_toml()}, "w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}
    }).encode()  # fmt: skip
    (path / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + tensor)
    return path


def evaluated(run, rights, *, split="val", name="evaluation", **more):
    """What `residuum evaluate` leaves, as far as a comparison reads it."""
    folder = run / name
    folder.mkdir()
    about = {"split": split, "data": "digits", "mirrored": False}
    about |= {"weights_sha256": weights_digest(run / "weights.safetensors")} | more
    (folder / "evaluation.json").write_text(json.dumps(about))
    lines = ["image,label,class1,probability1,loss"]
    lines += [f"{i},cat,{'cat' if right else 'dog'},0.9,0.1" for i, right in enumerate(rights)]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
