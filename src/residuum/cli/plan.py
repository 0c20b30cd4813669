"""`residuum plan`: what training recomputes to fit a memory budget."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.config import ResNetConfig
from residuum.errors import ConfigError
from residuum.presets import usual_image_size
from residuum.units import parse_size


@dataclass(frozen=True)
class Plan:
    """Choose what training recomputes, so that a step fits a memory budget at the least time."""

    # the preset to start from; 'residuum presets' lists them
    preset: Annotated[str, tyro.conf.Positional]
    # fields to change
    model: Annotated[ResNetConfig, tyro.conf.arg(name="")]
    # images in a step
    batch_size: int = 32
    # budget such as 16GB; what is free on the device where left out
    memory: str | None = None
    # height and width of the image; the preset's usual one where left out
    size: tuple[int, int] | None = None
    # bf16 is autocast's
    precision: Literal["fp32", "bf16"] = "bf16"
    # whose state is counted
    optimizer: Literal["sgd", "adamw", "none"] = "sgd"
    # on which the network's parts are timed
    device: str = "auto"
    # also draw time against memory, as .svg or .png
    draw: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(command: Plan, console: Console) -> int:
    """Print the plan; draw where asked."""
    from residuum.draw import check_drawable

    budget = parse_size(command.memory) if command.memory is not None else None
    if command.draw is not None:
        check_drawable(command.draw)
    size = command.size or usual_image_size(command.preset)
    if min(size) < 1 or command.batch_size < 1:
        raise ConfigError(f"size is {size} and batch_size {command.batch_size}; both must be positive")
    import torch

    from residuum.cli.plan_report import draw_frontier, print_plan
    from residuum.devices import free_memory, pick_device, set_up
    from residuum.memory.in_place import choose_in_place
    from residuum.memory.planner import Planner
    from residuum.nn.resnet import ResNet

    device = pick_device(command.device)
    budget = free_memory(device) if budget is None else budget
    dtype = torch.bfloat16 if command.precision == "bf16" else None
    with torch.device("meta"):
        model = ResNet(command.model).to(memory_format=torch.channels_last)
    choose_in_place(model, device, dtype or torch.float32)
    set_up(device)  # as training does, so that it is timed as it runs
    planner = Planner(model, image_size=size, dtype=dtype, optimizer=command.optimizer, device=device)
    plan = planner.plan(command.batch_size, budget)
    print_plan(console, planner, plan, command.preset, budget)
    if command.draw is not None:
        draw_frontier(planner, plan, command.draw, command.preset)
        console.print(f"drawn: {command.draw}", highlight=False, soft_wrap=True)
    return 0
