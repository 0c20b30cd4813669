"""What is measured: a network, what is done with it, and how it is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

import torch

from residuum.cost import cost
from residuum.devices import choose_precision
from residuum.errors import BenchError
from residuum.presets import preset, usual_image_size
from residuum.validation import AtLeast, check

Task = Literal["train", "infer"]
Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["nchw", "channels-last"]
Mode = Literal["eager", "compiled", "graph"]

TASKS = {"train": "training", "infer": "inference"}  # as a sentence names them
USUAL_FORMAT: dict[Precision, MemoryFormat] = {"fp32": "nchw", "bf16": "channels-last"}


@dataclass(frozen=True)
class Workload:
    """One comparison. Images are (batch_size, channels, *image_size). Raises `ConfigError` for what cannot be."""

    model: str
    task: Task
    precision: Precision
    memory_format: MemoryFormat
    mode: Mode
    batch_size: Annotated[int, AtLeast(1, 2**20)]
    image_size: Annotated[tuple[int, int], AtLeast(1, 2**15)]
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self)
        preset(self.model)

    def __str__(self) -> str:
        size = "x".join(map(str, self.image_size))
        how = f"{self.precision} {self.memory_format} {self.mode}"
        return f"{self.model} {TASKS[self.task]}, {how}, batch {self.batch_size} of {size}"


def workloads_of(
    models: Sequence[str],
    tasks: Sequence[Task],
    precisions: Sequence[Precision],
    memory_formats: Sequence[MemoryFormat],
    modes: Sequence[Mode],
    batch_sizes: Sequence[int],
    image_size: tuple[int, int] | None,
    device: torch.device,
) -> list[Workload]:
    """Every combination. Without precisions fp32, and bf16 where the device computes it; without memory formats, each
    precision in the one that suits it: fp32 NCHW, bf16 channels-last.

    Raises `ConfigError` for what cannot be, and `BenchError` for CUDA graphs on another device.
    """
    if "graph" in modes and device.type != "cuda":
        raise BenchError(f"mode graph records a CUDA graph and the device is {device}; leave it out")
    precisions = precisions or (("fp32", "bf16") if choose_precision("auto", device)[0] == "bf16" else ("fp32",))
    workloads = [
        Workload(model, task, precision, form, mode, size, image_size or usual_image_size(model), str(device))
        for model, size, task, precision, mode in product(models, batch_sizes, tasks, precisions, modes)
        for form in memory_formats or (USUAL_FORMAT[precision],)
    ]
    if not workloads:
        raise BenchError("there is nothing to measure: models, tasks, modes and batch sizes need a value each")
    return list(dict.fromkeys(workloads))


def step_flops(workload: Workload) -> int:
    """Floating-point operations of one step's convolutions and matrix products, for any of the libraries.

    Raises `ConfigError` where the images are too small for the network.
    """
    training = workload.task == "train"
    images = 2  # of one image, norms in training may be left a single value, which they refuse
    parts = cost(preset(workload.model), workload.image_size, images, by_layer=training)
    macs = sum(part.macs + (part.backward_macs if training else 0) for part in parts)
    return 2 * macs * workload.batch_size // images
