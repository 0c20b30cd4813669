"""The step of a contender that is timed."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from residuum.bench.contenders import OUT_OF_THE_BOX, REFERENCES, Contender, build
from residuum.bench.workloads import Precision, Workload
from residuum.factory import create
from residuum.inference.optimize import optimize_for_inference
from residuum.memory import choose_in_place
from residuum.nn.resnet import ResNet
from residuum.presets import preset


@dataclass(frozen=True)
class Step:
    """What is timed: `run` does one step.

    Its memory is that of `passes`, the forward and in training the backward pass, into gradients that are there
    already; `tensors` are there all the time. `precision` is that of its convolutions. `flops` are its floating-point
    operations where they need not be those of the preset.
    """

    run: Callable[[], object]
    passes: Callable[[], object]
    tensors: Callable[[], list[Tensor]]
    precision: Precision
    flops: int | None = None


def prepare(contender: Contender, workload: Workload) -> Step:
    """The contender's step, ready to run. What comes before it, such as compiling, is not timed."""
    torch.manual_seed(0)
    device = torch.device(workload.device)
    if contender.name in REFERENCES:
        return _matrix_product(REFERENCES[contender.name], device)
    if contender == Contender(OUT_OF_THE_BOX):
        return _trainer(workload, device) if workload.task == "train" else _predictor(workload, device)
    form = torch.channels_last if workload.memory_format == "channels-last" else torch.contiguous_format
    model = build(contender, workload.model).to(device, memory_format=form)  # type: ignore[call-overload]
    images = _images(workload, device).to(memory_format=form)
    if isinstance(model, ResNet):  # as training does
        choose_in_place(model, device, torch.bfloat16 if workload.precision == "bf16" else torch.float32)
    run = torch.compile(model) if workload.mode == "compiled" else model
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=workload.precision == "bf16")
    labels = torch.randint(preset(workload.model).num_classes, (workload.batch_size,), device=device)
    training = workload.task == "train"
    model.train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4) if training else None

    def passes(net: Callable[[Tensor], Tensor] = run) -> None:
        if optimizer is None:
            with torch.inference_mode(), autocast():
                net(images)
            return
        with autocast():
            loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        if optimizer is not None:
            optimizer.zero_grad()
        passes()
        if optimizer is not None:
            optimizer.step()

    flops = _flops(partial(passes, model)) if contender.source else None
    run_step = _graph(step) if workload.mode == "graph" else step
    return Step(run_step, passes, partial(_tensors, model), workload.precision, flops)


def _flops(passes: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        passes()
    return int(counter.get_total_flops())


def _images(workload: Workload, device: torch.device) -> Tensor:
    channels = preset(workload.model).in_channels
    return torch.randn(workload.batch_size, channels, *workload.image_size, device=device)


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


def _trainer(workload: Workload, device: torch.device) -> Step:
    """The very step of `residuum train`, augmentation included."""
    from residuum.data.loaders import make_loader
    from residuum.data.settings import Augmentation
    from residuum.data.sources import Split
    from residuum.devices import choose_precision, set_up
    from residuum.preprocessing import Preprocessing
    from residuum.train.optim import make_loss, make_optimizer
    from residuum.train.recipe import LossSettings, OptimizerSettings
    from residuum.train.session import make_network
    from residuum.train.step import forward, train_step

    set_up(device)
    config = preset(workload.model)
    precision, _ = choose_precision("auto", device)
    count = 2 * workload.batch_size
    pixels = torch.randint(256, (count, *workload.image_size, config.in_channels), dtype=torch.uint8)
    centre = (0.5,) * config.in_channels, (0.25,) * config.in_channels
    loader = make_loader(
        Split(pixels, torch.randint(config.num_classes, (count,))),
        Preprocessing(config.in_channels, workload.image_size, *centre, 0.0),
        batch_size=workload.batch_size,
        seed=0,
        train=True,
        augmentation=Augmentation(pad=4, flip="random"),
        device=device,
        workers=0,
        skip_bad_images=False,
    )
    network = make_network(config, device, precision)
    optimizer = make_optimizer(network, OptimizerSettings(lr=0.01))
    batches = itertools.chain.from_iterable(loader.epoch(number) for number in itertools.count())
    bf16, criterion = precision == "bf16", make_loss(LossSettings())

    def train() -> None:
        loss, _ = train_step(network, optimizer, *next(batches), bf16=bf16, loss=criterion)
        if device.type == "cpu":  # as the loop does, to find a loss that is no number
            float(loss)

    def passes() -> None:
        loss, _ = forward(network, *next(batches), bf16=bf16, loss=criterion)
        loss.backward()  # type: ignore[no-untyped-call]

    return Step(train, passes, partial(_tensors, network), "bf16" if bf16 else "fp32")


def _predictor(workload: Workload, device: torch.device) -> Step:
    """The network as `residuum predict` runs it."""
    model = optimize_for_inference(create(workload.model).to(device))
    images = _images(workload, device)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    return Step(infer, infer, partial(_tensors, model), "bf16" if model.dtype == torch.bfloat16 else "fp32")
