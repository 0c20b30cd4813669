"""The modular network and one written by hand, trained alike: the same accuracy for each seed, and the time of both.

    python -m benchmarks.article_study --seeds 5 --epochs 10 --out studies/by-hand

Both have torchvision's names for their parameters and begin with the same weights. Data, steps, losses and schedule are
those of `residuum train`; only what is called in a step differs. The report is that of `residuum ablate`.
"""

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from residuum.ablate.report import sentences, table, write_report
from residuum.ablate.results import CellResult, StudyResult, Variant
from residuum.ablate.statistics import compare, verdict
from residuum.ablate.worker import warm_up
from residuum.cost import cost
from residuum.data.catalog import scan
from residuum.report.tables import print_table
from residuum.train.execution import Execution
from residuum.train.loop import look_at, train_epochs
from residuum.train.optim import set_norm_momentum
from residuum.train.recipe import Recipe
from residuum.train.session import Job, prepare, with_norm_batch
from residuum.train.state import State


class ByHand(nn.Module):
    """The network of the digits as it is found written out: every layer an attribute, every line of its pass written.

    Ten layers: a stem, two stages of two basic blocks, a classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.ModuleList([self._block(32, 32), self._block(32, 32)])
        self.layer2 = nn.ModuleList([self._block(32, 64, stride=2), self._block(64, 64)])
        self.fc = nn.Linear(64, 10)

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        block = nn.Module()
        block.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        block.bn1 = nn.BatchNorm2d(outputs)
        block.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        block.bn2 = nn.BatchNorm2d(outputs)
        return block

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))

        a = self.layer1[0]
        out = torch.relu(a.bn1(a.conv1(x)))
        x = torch.relu(a.bn2(a.conv2(out)) + x)

        b = self.layer1[1]
        out = torch.relu(b.bn1(b.conv1(x)))
        x = torch.relu(b.bn2(b.conv2(out)) + x)

        c = self.layer2[0]
        out = torch.relu(c.bn1(c.conv1(x)))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 16, 16))  # new channels are 0
        x = torch.relu(c.bn2(c.conv2(out)) + shortcut)

        d = self.layer2[1]
        out = torch.relu(d.bn1(d.conv1(x)))
        x = torch.relu(d.bn2(d.conv2(out)) + x)

        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def by_hand(job: Job) -> State:
    """The state of a run of the network by hand, with the job's own weights and settings of its optimizer."""
    ours, optimizer = job.state.network, job.state.optimizer
    network: Any = ByHand()
    network.load_state_dict(ours.state_dict())
    network.to(memory_format=torch.channels_last).train()
    set_norm_momentum(network, job.recipe.optimizer.norm_momentum)
    names, own = {id(p): name for name, p in ours.named_parameters()}, dict(network.named_parameters())
    groups = [{**g, "params": [own[names[id(p)]] for p in g["params"]]} for g in optimizer.param_groups]
    state = State(network, type(optimizer)(groups))
    state.progress.begin_epoch(len(job.train), job.state.device)
    return state


def trained(recipe: Recipe, hand: bool) -> CellResult:
    """One of the two networks, trained to the end and tested."""
    execution, device = Execution(device="cpu"), torch.device("cpu")
    job = prepare(recipe, execution, scan(recipe.data.path), device, ())
    state = by_hand(job) if hand else job.state
    begin = time.perf_counter()
    train_epochs(state, state.network, recipe, job.train, job.val)
    seconds = time.perf_counter() - begin
    assert job.dataset.test is not None
    found = look_at(state.result, job.loader(job.dataset.test), "test", recipe)
    row = {**state.progress.history[-1], "test_accuracy": found.accuracy, "test_loss": found.loss}
    metrics = {name: float(row[name]) for name in ("test_accuracy", "test_loss", "val_accuracy", "train_loss")}
    weights = hashlib.sha256()
    for name, tensor in sorted(state.result.state_dict().items()):
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    name = "by hand" if hand else "modular"
    return CellResult(
        name, recipe.seed, f"{name}-{recipe.seed}", "done", metrics | {"seconds": seconds},
        weights=weights.hexdigest(), history=tuple(state.progress.history),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("studies/by-hand"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warm_up("cpu")
    recipe = with_norm_batch(Recipe.default("digits").replace(epochs=args.epochs, precision="fp32"), 1)
    cells = []
    for seed in range(args.seeds):  # each of the two begins in half of the blocks: a slower machine is so for both
        cells += [trained(recipe.replace(seed=seed), hand) for hand in ((False, True) if seed % 2 else (True, False))]
    parts = cost(recipe.model, (8, 8), 2, by_layer=False)
    size = sum(part.parameters for part in parts), sum(part.macs for part in parts) // 2
    variants = (Variant("by hand", {}, {}, *size), Variant("modular", {}, {}, *size))
    line = "python -m benchmarks.article_study"
    study = StudyResult(
        "by-hand", "list", "by hand", "test_accuracy", variants,
        tuple(cells), tuple(range(args.seeds)), ("test_loss", "seconds"),
        about={"torch": torch.__version__, "threads": str(args.threads), "command": line},
    )  # fmt: skip
    write_report(study, args.out)
    print_table(Console(), table(study))
    print(*sentences(study), sep="\n")
    (seconds,) = compare(study, "seconds")
    mean = sum(cell.metrics["seconds"] for cell in cells if cell.variant == "by hand") / args.seeds
    ends = "" if seconds.interval is None else f" ({seconds.interval[0]:+.2f} to {seconds.interval[1]:+.2f})"
    print(f"seconds of training: by hand {mean:.2f}, the modular one {seconds.mean:+.2f}{ends}: {verdict(seconds)}")


if __name__ == "__main__":
    main()
