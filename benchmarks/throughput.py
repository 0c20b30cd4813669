"""Images per second of residuum against torchvision, like for like and out of the box.

    python benchmarks/throughput.py [--rounds 9] [--only NAME] [--json FILE]

Each contender lives in a process of its own, so that neither inherits the other's memory allocator or caches. They take
turns of a few steps, after warm-up; while one works the other waits. A ratio is the median over the rounds of the
paired ratios, shown with their quartiles. "Out of the box" is the very step that `residuum train` makes, augmentation
included, against a plain script: fp32, NCHW, torch.optim.SGD.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import residuum
from residuum.data.sources import Part, Preprocessing, Source
from residuum.devices import keep_freed_memory, pick_device, probe_bf16
from residuum.train.loop import Session
from residuum.train.recipe import Recipe

TURN = 3  # steps that are timed at a time


@dataclass(frozen=True)
class Contender:
    """A network from one of the libraries, and how it is run."""

    library: str  # residuum, torchvision; trainer is residuum's own training step
    model: str
    batch: int
    size: int
    train: bool
    bf16: bool = False
    channels_last: bool = False


@dataclass(frozen=True)
class Case:
    """Two contenders, and the ratio of images/s that the first has to reach."""

    name: str
    ours: Contender
    theirs: Contender
    floor: float


def _like_for_like(model: str, batch: int, train: bool, bf16: bool, floor: float) -> Case:
    what = f"{model} {'training' if train else 'inference'}, {'bf16 channels-last' if bf16 else 'fp32 NCHW'}"
    ours, theirs = (Contender(lib, model, batch, 224, train, bf16, bf16) for lib in ("residuum", "torchvision"))
    return Case(f"{what}, batch {batch}", ours, theirs, floor)


CASES = [
    *(_like_for_like("resnet50", 8, train, bf16, 0.98) for train in (True, False) for bf16 in (False, True)),
    Case(
        "resnet50 training out of the box, batch 8",
        Contender("trainer", "resnet50", 8, 224, True),
        Contender("torchvision", "resnet50", 8, 224, True),
        2.5,
    ),
    Case(
        "cifar_resnet20 training out of the box, batch 512",
        Contender("trainer", "cifar_resnet20", 512, 32, True),
        Contender("residuum", "cifar_resnet20", 512, 32, True),
        3.5,
    ),
]


def prepare(contender: Contender) -> Callable[[], None]:
    """The contender's step, ready to run."""
    torch.manual_seed(0)
    classes = residuum.preset(contender.model).num_classes
    if contender.library == "trainer":
        return _trainer_step(contender, classes)
    if contender.library == "torchvision":
        model: nn.Module = torchvision.models.get_model(contender.model, weights=None)
    else:
        model = residuum.create(contender.model)
    layout = torch.channels_last if contender.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.randn(contender.batch, 3, contender.size, contender.size).to(memory_format=layout)
    labels = torch.randint(classes, (contender.batch,))
    if not contender.train:
        model.eval()

        def infer() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=contender.bf16):
                model(images)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=contender.bf16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def _trainer_step(contender: Contender, classes: int) -> Callable[[], None]:
    keep_freed_memory()
    size, count = contender.size, 2 * contender.batch
    device = pick_device("cpu")
    pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
    part = Part(pixels, torch.randint(classes, (count,)))
    preprocessing = Preprocessing(3, (size, size), (0.5,) * 3, (0.25,) * 3, 0.0)
    source = Source(tuple(map(str, range(classes))), part, part, preprocessing)
    recipe = Recipe(
        model=residuum.preset(contender.model),
        epochs=1000,
        batch_size=contender.batch,
        lr=0.01,
        flip=True,
        pad=4,
        precision="bf16" if probe_bf16(device)[0] else "fp32",
    )
    session = Session(recipe, source, device)
    session.model.train()

    def forever() -> Any:
        for epoch in range(1000):
            session.progress.begin_epoch(len(session.train_batches), device)
            yield from session.train_batches.epoch(epoch)

    batches = forever()
    return lambda: session.step(*next(batches))


def serve(contender: Contender, pipe: Any) -> None:
    """Take a turn whenever the parent asks, and answer with the seconds of a step.

    The first step of a turn is not timed: it fetches what the other contender pushed out of caches and memory.
    """
    step = prepare(contender)
    pipe.send("ready")
    while pipe.recv():
        step()
        begin = time.perf_counter()
        for _ in range(TURN):
            step()
        pipe.send((time.perf_counter() - begin) / TURN)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Interleaved turns of both contenders, the order swapped each round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for contender in (case.ours, case.theirs):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(contender, there))
        process.start()
        here.recv()  # one after the other: the probe for bf16 must not be disturbed
        pipes.append(here)
        processes.append(process)
    times: list[list[float]] = [[], []]
    for number in track(range(rounds + 2), description=case.name, transient=True):
        for i in (0, 1) if number % 2 else (1, 0):
            pipes[i].send(True)
            seconds = pipes[i].recv()
            if number >= 2:
                times[i].append(seconds)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    speed = [case.ours.batch / statistics.median(seconds) for seconds in times]
    return asdict(case) | {"images_per_second": speed, "ratio": middle, "quartiles": [low, high], "rounds": rounds}


def machine() -> dict[str, Any]:
    """Where this was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "cpu": names[0] if names else platform.processor(),
        "bf16": " ".join(flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags) or "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "residuum": residuum.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(case, options.rounds) for case in CASES if options.only in case.name]
    console = Console(width=140)
    table = Table("case", title=", ".join(f"{k} {v}" for k, v in machine().items()), title_justify="left")
    for heading in ("ours, images/s", "theirs", "ratio", "quartiles", "asked"):
        table.add_column(heading, justify="right")
    for result in results:
        ours, theirs = result["images_per_second"]
        low, high = result["quartiles"]
        figures = (f"{ours:.1f}", f"{theirs:.1f}", f"{result['ratio']:.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(result["name"], *figures, f"{result['floor']:.2f}")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
