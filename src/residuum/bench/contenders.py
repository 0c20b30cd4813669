"""Who takes part: a network of each library, and the step of it that is timed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from residuum.errors import BenchError, nearest
from residuum.inference.folding import optimize_for_inference
from residuum.memory import choose_in_place, recompute
from residuum.nn.resnet import create
from residuum.presets import PRESETS, preset

Task = Literal["train", "infer"]
Precision = Literal["fp32", "bf16"]
Layout = Literal["nchw", "channels-last"]
Mode = Literal["eager", "compiled", "graph"]

OUT_OF_THE_BOX = "residuum:auto"  # as `residuum train` and `predict` run it, whatever the cell says
# Large matrix products: what the machine can do at all, in each precision.
REFERENCES: dict[str, Precision] = {"matmul:fp32": "fp32", "matmul:bf16": "bf16"}
_BRUTE_FORCE = "brute_force"
_RECOMPUTING = {f"residuum:{mode}": mode for mode in ("selective", "block", "stage")}
# Contender to the package that it needs.
PACKAGES = {
    _BRUTE_FORCE: "torch",
    "residuum": "torch",
    **dict.fromkeys(_RECOMPUTING, "torch"),
    OUT_OF_THE_BOX: "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
}


@dataclass(frozen=True)
class Cell:
    """One comparison: the network, what is done with it, and how it is run. Images are (batch, channels, *size)."""

    model: str
    task: Task
    precision: Precision
    layout: Layout
    mode: Mode
    batch: int
    size: tuple[int, int]
    device: str = "cpu"

    def __str__(self) -> str:
        task = "training" if self.task == "train" else "inference"
        size = "x".join(map(str, self.size))
        return f"{self.model} {task}, {self.precision} {self.layout} {self.mode}, batch {self.batch} of {size}"


@dataclass(frozen=True)
class Step:
    """What is timed: `run` does one step.

    Its memory is that of `passes`, the forward and in training the backward pass, into gradients that are there
    already; `tensors` are there all the time. `precision` is that of its convolutions.
    """

    run: Callable[[], object]
    passes: Callable[[], object]
    tensors: Callable[[], list[Tensor]]
    precision: Precision


def check_contenders(names: tuple[str, ...]) -> None:
    """Raise `BenchError` for a contender that is not known or not installed."""
    for name in names:
        if name not in PACKAGES:
            raise BenchError(
                f"there is no contender {name!r}{nearest(name, PACKAGES)}; the contenders are {', '.join(PACKAGES)}"
            )
        if not _installed(name):
            raise BenchError(f"{name} is not installed; install it with: pip install {PACKAGES[name]}")


def usual_contenders() -> tuple[str, ...]:
    """Those that take part unless others are named: what is installed."""
    return tuple(name for name in PACKAGES if name not in _RECOMPUTING and _installed(name))


def _installed(name: str) -> bool:
    return find_spec(PACKAGES[name]) is not None


def absent(name: str, cell: Cell) -> str | None:
    """Why a contender has no part in a cell, or None where it has."""
    library = _LIBRARIES.get(name.partition(":")[0])
    if library is not None and not library.has(cell.model):
        return f"{name} has no {cell.model}"
    if name in _RECOMPUTING and (cell.task == "infer" or cell.mode == "compiled"):
        return f"{name} differs from residuum in eager training only"
    return None


def build(name: str, model: str) -> nn.Module:
    """The contender's own network, with its own initial weights: (N, C, H, W) -> (N, num_classes)."""
    network = _LIBRARIES[name.partition(":")[0]].build(model)
    return recompute(network, _RECOMPUTING[name]) if name in _RECOMPUTING else network  # type: ignore[arg-type]


def _in_torchvision(model: str) -> bool:
    import torchvision

    return model in torchvision.models.list_models(module=torchvision.models) and model in PRESETS


def _in_timm(model: str) -> bool:
    import timm

    return model in timm.list_models()


def _in_transformers(model: str) -> bool:
    config = PRESETS[model]
    same = {f: getattr(config, f) for f in ("depths", "block", "num_classes")}
    return config == PRESETS["resnet50"].replace(**same)


def _brute_force(model: str) -> nn.Module:
    from benchmarks.code_size.brute_force import ResNet50

    return ResNet50()


def _torchvision(model: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(model, weights=None)  # type: ignore[no-any-return]


def _timm(model: str) -> nn.Module:
    import timm

    return timm.create_model(model, pretrained=False)


class _Logits(nn.Module):
    """Of a Hugging Face model, which wraps them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits  # type: ignore[no-any-return]


def _transformers(model: str) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = preset(model)
    fields: dict[str, Any] = {
        "layer_type": config.block,  # of the same names
        "depths": list(config.depths),
        "hidden_sizes": [stage.channels for stage in config.stages],
        "num_labels": config.num_classes,
    }
    return _Logits(ResNetForImageClassification(ResNetConfig(**fields)))


@dataclass(frozen=True)
class _Library:
    """Whether it has a preset's network, and that network."""

    has: Callable[[str], bool]
    build: Callable[[str], nn.Module]


_LIBRARIES = {
    _BRUTE_FORCE: _Library(lambda model: model == "resnet50", _brute_force),
    "residuum": _Library(lambda model: model in PRESETS, create),
    "torchvision": _Library(_in_torchvision, _torchvision),
    "timm": _Library(_in_timm, _timm),
    "transformers": _Library(_in_transformers, _transformers),
}


def prepare(name: str, cell: Cell) -> Step:
    """The contender's step for a cell, ready to run. What comes before it, such as compiling, is not timed."""
    torch.manual_seed(0)
    device = torch.device(cell.device)
    if name in REFERENCES:
        return _matrix_product(REFERENCES[name], device)
    if name == OUT_OF_THE_BOX:
        return _trainer(cell, device) if cell.task == "train" else _predictor(cell, device)
    layout = torch.channels_last if cell.layout == "channels-last" else torch.contiguous_format
    model = build(name, cell.model).to(device, memory_format=layout)  # type: ignore[call-overload]
    images = _images(cell, device).to(memory_format=layout)
    run = torch.compile(model) if cell.mode == "compiled" else model
    if name.partition(":")[0] == "residuum":  # as training does
        choose_in_place(model, device, torch.bfloat16 if cell.precision == "bf16" else torch.float32)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=cell.precision == "bf16")
    if cell.task == "infer":
        model.eval()

        def infer() -> None:
            with torch.inference_mode(), autocast():
                run(images)

        return _step(infer, infer, model, cell)
    labels = torch.randint(preset(cell.model).num_classes, (cell.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def passes() -> None:
        with autocast():
            loss = nn.functional.cross_entropy(run(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    def train() -> None:
        optimizer.zero_grad()
        passes()
        optimizer.step()

    return _step(train, passes, model, cell)


def _step(run: Callable[[], None], passes: Callable[[], None], model: nn.Module, cell: Cell) -> Step:
    return Step(_graph(run) if cell.mode == "graph" else run, passes, partial(_tensors, model), cell.precision)


def _images(cell: Cell, device: torch.device) -> Tensor:
    return torch.randn(cell.batch, preset(cell.model).in_channels, *cell.size, device=device)


def _tensors(model: nn.Module) -> list[Tensor]:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*model.parameters(), *model.buffers(), *gradients]


def _graph(step: Callable[[], None]) -> Callable[[], object]:
    """The whole step as one CUDA graph."""
    cuda: Any = torch.cuda
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(3):  # gradients, momentum and cuDNN's choices have to be there before the capture
            step()
    cuda.current_stream().wait_stream(side)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        step()
    return graph.replay  # type: ignore[no-any-return]


def _matrix_product(precision: Precision, device: torch.device) -> Step:
    side = matrix_side(device.type)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    product = partial(torch.mm, left, right, out=out)
    return Step(product, product, lambda: [left, right, out], precision)


def matrix_side(kind: str) -> int:
    """Rows of the square matrices of the reference: large enough that their product reaches what a machine can do."""
    return 2048 if kind == "cpu" else 8192


def _trainer(cell: Cell, device: torch.device) -> Step:
    """The very step of `residuum train`, augmentation included."""
    from residuum.data.sources import Part, Source
    from residuum.devices import choose_precision, set_up
    from residuum.preprocessing import Preprocessing
    from residuum.train.loop import Session
    from residuum.train.recipe import Recipe

    set_up(device)
    config = preset(cell.model)
    pixels = torch.randint(256, (2 * cell.batch, *cell.size, config.in_channels), dtype=torch.uint8)
    part = Part(pixels, torch.randint(config.num_classes, (2 * cell.batch,)))
    centre = (0.5,) * config.in_channels, (0.25,) * config.in_channels
    source = Source(
        tuple(map(str, range(config.num_classes))),
        part,
        part,
        Preprocessing(config.in_channels, cell.size, *centre, 0.0),
    )
    recipe = Recipe(
        model=config,
        epochs=1000,
        batch_size=cell.batch,
        lr=0.01,
        flip=True,
        pad=4,
        precision="bf16" if choose_precision("auto", device)[0] == "bf16" else "fp32",
        device=str(device),
    )
    session = Session(recipe, source, device)
    session.model.train()

    def forever() -> Any:
        for epoch in range(recipe.epochs):
            session.progress.begin_epoch(len(session.train_batches), device)
            yield from session.train_batches.epoch(epoch)

    batches = forever()

    def passes() -> None:
        loss, _ = session.forward(*next(batches))
        loss.backward()  # type: ignore[no-untyped-call]

    tensors = partial(_tensors, session.model)
    return Step(lambda: session.step(*next(batches)), passes, tensors, "bf16" if session.bf16 else "fp32")


def _predictor(cell: Cell, device: torch.device) -> Step:
    """The network as `residuum predict` runs it."""
    model = optimize_for_inference(create(cell.model).to(device))
    images = _images(cell, device)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    return Step(infer, infer, partial(_tensors, model), "bf16" if model.dtype == torch.bfloat16 else "fp32")
