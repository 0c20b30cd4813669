"""`residuum plan`: what training recomputes to fit a memory budget."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from residuum.cli.console import say
from residuum.cli.line import Line
from residuum.config import ResNetConfig
from residuum.presets import preset, usual_image_size
from residuum.units import parse_size, show_budget
from residuum.validation import AtLeast


@dataclass(frozen=True)
class Plan:
    """Choose what training recomputes, so that a step fits a memory budget and takes the least time.

    What fits as it is recomputes nothing.
    """

    # name of the preset to start from, also as --model MODEL; 'residuum presets' lists all
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    # the fields of the config, with the preset's values as defaults
    config: Annotated[ResNetConfig, tyro.conf.arg(name="")]
    # height and width of the images in pixels; the default is the size that the preset is meant for
    image_size: Annotated[tuple[int, int], AtLeast(1, 2**16), tyro.conf.arg(metavar="HEIGHT WIDTH")]
    # number of images in a step
    batch_size: Annotated[int, AtLeast(1, 2**20)] = 32
    # memory that the tensors of a step may take, such as 16GB or 7.5GiB: a GB is 10^9 bytes, a GiB 2^30, and a GPU that
    # is sold with "8 GB" has 8GiB; auto is what is free on the device
    memory: str = "auto"
    # number format in which a step computes; bf16 is that of torch.autocast; auto is bf16 where the device computes it,
    # else fp32, as for 'residuum train'; name it to plan for another machine
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # optimizer whose state is counted
    optimizer: Literal["sgd", "adamw", "none"] = "sgd"
    # device on which the parts of the network are timed, such as cpu or cuda; auto is the accelerator if there is one
    device: str = "auto"
    # draw time against memory into this file as well, which ends in .svg or .png
    draw: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def defaults(line: Line) -> Plan:
    """`Plan` with the fields and the image size of the preset that the line names."""
    name = line.get("model")
    return Plan(name or tyro.MISSING, preset(name or "resnet50"), usual_image_size(name or "resnet50"))


def run(command: Plan, console: Console) -> int:
    """Print the plan; draw where asked."""
    from residuum.draw import check_drawable

    if command.memory != "auto":
        parse_size(command.memory)  # before the work
    if command.draw is not None:
        check_drawable(command.draw)
    import torch

    from residuum.cli.plan_report import draw_frontier, print_plan
    from residuum.devices import choose_precision, free_memory, pick_device, set_up
    from residuum.memory.in_place import choose_in_place
    from residuum.memory.planner import Planner
    from residuum.nn.resnet import ResNet

    device = pick_device(command.device)
    room: str | int = free_memory(device) if command.memory == "auto" else command.memory
    budget = show_budget(room) + (f" (free on {device})" if command.memory == "auto" else "")
    precision, why = str(command.precision), "as asked"  # which need not be one that this device computes
    if precision == "auto":
        precision, why = choose_precision("auto", device)
        why = f"as {why}; --precision names another"
    dtype = torch.bfloat16 if precision == "bf16" else None
    with torch.device("meta"):
        model = ResNet(command.config).to(memory_format=torch.channels_last)
    choose_in_place(model, device, dtype or torch.float32)
    set_up(device)  # as training does, so that it is timed as it runs
    planner = Planner(model, image_size=command.image_size, dtype=dtype, optimizer=command.optimizer, device=device)
    plan = planner.plan(command.batch_size, room)
    print_plan(console, planner, plan, command.model, room=room, budget=budget, precision=precision, why=why)
    if command.draw is not None:
        draw_frontier(planner, plan, command.draw, command.model)
        say(console, "drawn: ", command.draw)
    return 0
