"""How far exported files are from their networks: presets of every kind, in each format, for each kind of input.

    python -m benchmarks.export_matrix
    python -m benchmarks.export_matrix --presets resnet18 seresnet50 --formats onnx
    python -m benchmarks.export_matrix --all

Each cell is what `residuum.export.export` proved of a written file, in a process of its own, on made-up images of
several sizes: the largest difference of a logit, as a share of its image's largest. A runtime that takes less than fp32
by itself on this processor has that in brackets. Networks have random weights, statistics of norms as after training,
a quarter of the width and one block a stage.

`--all` converts every preset at its full depth, without preprocessing, to ONNX, and compares ONNX Runtime with the
network on one image. Both need the extras export and openvino, and exit with 1 where a file is refused.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tests.networks import scramble

from residuum import Preprocessing, create
from residuum.errors import ResiduumError, first_line
from residuum.export import export
from residuum.export.inputs import Input
from residuum.export.proof import TOLERANCE, difference
from residuum.export.write import ENDINGS, captured_network
from residuum.inference.optimize import folded_network
from residuum.nn.resnet import ResNet
from residuum.presets import PRESETS
from residuum.report.tables import Table, print_table
from residuum.runtimes.onnx import OnnxSession, onnx_model

# One of each kind: plain, bottleneck with a deep stem, SE, ECA, blurring, pooling before strides, groups, group norm,
# pre-activation, BiT (group norm and weight standardization), CIFAR's with padded shortcuts, and dilated.
KINDS = (
    "resnet18", "resnet50d", "seresnet50", "ecaresnet50d", "resnetblur50", "resnetaa50", "resnext50_32x4d",
    "resnet50_gn", "resnetv2_50", "resnetv2_50x1_bit", "cifar_resnet20", "resnet50 dilated",
)  # fmt: skip
INPUTS: dict[str, dict[str, Any]] = {
    "normalized": {"input": "normalized"},
    "normalized, any size": {"input": "normalized", "dynamic_size": True},
    "image": {"input": "image"},
}
SIZE = (64, 80)
SQUARE = (64, 64)
QUARTER = 0.25
FULL = ("senet154",)  # whose groups do not divide a quarter of its channels


def network(name: str, **changes: Any) -> ResNet:
    """A preset with random weights, in evaluation; `dilated` after the name keeps the last stages' resolution."""
    torch.manual_seed(0)
    preset, _, dilated = name.partition(" ")
    if dilated:
        changes["output_stride"] = 8
    if preset not in FULL:
        changes["width"] = QUARTER
    model = create(preset, **changes)
    scramble(model)
    return model.eval()


def one_block(name: str) -> ResNet:
    """The preset with one block a stage, and a preprocessing."""
    model = network(name, depths=(1,) * len(PRESETS[name.partition(" ")[0]].depths))
    channels = model.config.in_channels
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    model.preprocessing = Preprocessing(channels, SIZE, mean, std, 0.875)
    return model


def proved(name: str, to: str, kind: str) -> str:
    """What the proof of one export found; raises `ResiduumError`."""
    with tempfile.TemporaryDirectory() as folder:
        proof = export(one_block(name), Path(folder) / f"net{ENDINGS[to]}", **INPUTS[kind])
    found = f"{proof.logits:.1e}"
    return found if proof.default is None else f"{found} ({proof.default:.1e} {proof.default_precision})"


def whole_preset(name: str) -> str:
    """How far ONNX Runtime is from a preset on one image; raises `ResiduumError`."""
    model = network(name)
    given = Input("normalized", model.config.in_channels, SQUARE)
    with torch.no_grad():
        net = folded_network(model, "fp32", plain=True)
        run = OnnxSession(onnx_model(captured_network(net, given)).SerializeToString())
        images = torch.randn(1, model.config.in_channels, *SQUARE)
        found = difference(run(images), model(images))
    if found > TOLERANCE["fp32"]:
        raise ResiduumError(f"ONNX Runtime's logits differ by {found:.2g} of the largest")
    return f"{found:.1e}"


def tried(refused: list[str], work: Callable[..., str], *asked: str) -> str:
    """The cell, or `refused` and why, noted in the list."""
    try:
        found = work(*asked)
    except ResiduumError as error:
        refused.append(f"{', '.join(asked)}: {first_line(error)}")
        found = "refused"
    print(f"{', '.join(asked)}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="presets to export (default: one of each kind)")
    parser.add_argument("--formats", nargs="+", choices=list(ENDINGS), help="default: all but aoti")
    parser.add_argument("--all", action="store_true", help="convert every preset to ONNX and run it once")
    asked = parser.parse_args()
    refused: list[str] = []
    if asked.all:
        rows = tuple((name, tried(refused, whole_preset, name)) for name in asked.presets or PRESETS)
        table = Table("Presets in ONNX Runtime, largest difference", ("preset", "onnx"), rows)
    else:
        formats = asked.formats or [name for name in ENDINGS if name != "aoti"]  # which compiles for a minute each time
        columns = [(to, kind) for to in formats for kind in INPUTS if (to, kind) != ("aoti", "image")]
        rows = tuple(
            (name, *(tried(refused, proved, name, to, kind) for to, kind in columns)) for name in asked.presets or KINDS
        )
        table = Table(
            "Exported files, largest difference", ("network", *(f"{to}: {kind}" for to, kind in columns)), rows
        )
    print_table(Console(), table)
    for reason in refused:
        print(reason)
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
