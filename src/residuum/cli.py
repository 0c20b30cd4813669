"""The command line: `residuum train`, `predict`, `convert`, ... Parses, calls, and prints errors in one line."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from residuum.config import ResNetConfig
from residuum.data.facts import facts
from residuum.errors import ConfigError, ResiduumError
from residuum.presets import preset
from residuum.sizes import parse_size
from residuum.train.recipe import Recipe, check_fit, default_recipe, recipe_file, with_file
from residuum.train.run import free_folder

CACHE = Path("~/.cache/residuum")
Named = Annotated[str | None, tyro.conf.arg(name="model", metavar="PRESET")]


@dataclass(frozen=True)
class Train:
    """Train a network and leave a run folder. Without arguments: the handwritten digits that come with the package."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    # a published network in place of the one that goes with the data; 'residuum presets' lists them
    preset: Named = None
    # a recipe in TOML; the command line goes over it, and it over the defaults
    file: Annotated[Path | None, tyro.conf.arg(name="recipe", metavar="FILE.toml")] = None
    # run folder to make; runs/DATA-N where left out
    out: Path | None = None
    # run folder to go on with; its recipe stands
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    # where downloaded datasets are kept
    root: Path = CACHE


@dataclass(frozen=True)
class Predict:
    """Classify image files with a run's network."""

    # run folder, or a weights file of one
    run: Annotated[Path, tyro.conf.Positional]
    # image files
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    # classes to show for each image
    top: int = 3
    # cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"


@dataclass(frozen=True)
class Summary:
    """Show what a network is made of and what it costs, stage by stage."""

    # the preset to start from; 'residuum presets' lists them
    preset: Annotated[str, tyro.conf.Positional]
    # fields to change
    model: Annotated[ResNetConfig, tyro.conf.arg(name="")]
    # height and width of the image; the preset's usual one where left out
    size: tuple[int, int] | None = None
    # images in a batch
    batch: int = 1
    # of activations
    precision: Literal["fp32", "bf16"] = "fp32"
    # also show every layer, with the MAC of its backward pass
    layers: bool = False
    # also draw the network, as .svg or .png
    draw: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


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


@dataclass(frozen=True)
class Bench:
    """Compare brute force, residuum, torchvision, timm and transformers: speed, memory, lines of code."""

    # networks to compare; 'residuum presets' lists them
    models: tuple[str, ...] = ("resnet50",)
    # brute_force, residuum, residuum:selective, residuum:block, residuum:stage, residuum:auto (what 'residuum train'
    # and 'predict' do by themselves), torchvision, timm, transformers; those that are installed where left out
    contenders: tuple[str, ...] = ()
    # whose speed is 1
    baseline: str = "torchvision"
    # a whole training step, a forward pass without gradients
    tasks: tuple[Literal["train", "infer"], ...] = ("train", "infer")
    # bf16 is autocast's; fp32, and bf16 where the device computes it, where left out
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    # memory format of images and weights; nchw for fp32 and channels-last for bf16 where left out
    layouts: tuple[Literal["nchw", "channels-last"], ...] = ()
    # as it is, by torch.compile, or the whole step as a CUDA graph
    modes: tuple[Literal["eager", "compiled", "graph"], ...] = ("eager",)
    # images in a step
    batch_sizes: tuple[int, ...] = (2,)
    # height and width of the images; the network's usual one where left out
    size: tuple[int, int] | None = None
    # times that all get ready anew, at least 2
    sittings: int = 3
    # turns that each takes in a sitting
    rounds: int = 2
    # cpu, cuda, ...; auto is the accelerator if there is one
    device: str = "auto"
    # of the CPU; torch's choice where 0
    threads: int = 0
    # folder for the report; runs/bench-N where left out
    out: Path | None = None
    # only count lines of code
    lines: bool = False
    # two report.json: what got slower from the first to the second
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="A.json B.json")] = None


@dataclass(frozen=True)
class Presets:
    """List the published networks with depth, parameters and GMAC."""

    # show only names that contain this
    contains: Annotated[str, tyro.conf.Positional] = ""


@dataclass(frozen=True)
class Convert:
    """Write weights in the layout of another library. Reads all that 'inspect' reads."""

    # weights file, folder, or reference such as hf:microsoft/resnet-50
    source: Annotated[str, tyro.conf.Positional]
    # file to write, ending in .safetensors, .pt or .pth; for hf it may be a folder, as from_pretrained wants it
    target: Annotated[Path, tyro.conf.Positional]
    # whose layout to write
    to: Literal["residuum", "torchvision", "timm", "hf", "detectron2"] = "residuum"


@dataclass(frozen=True)
class Inspect:
    """Show what a weights file holds: its layout, the presets that fit, parameters, precision, NaNs."""

    # weights file, folder, or reference such as timm:resnet50.a1_in1k
    source: Annotated[str, tyro.conf.Positional]


def _train(args: list[str]) -> Train:
    """`Train` with the defaults that go with the data, preset and recipe file named on the line."""
    file = _value(args, "--recipe")
    values = recipe_file(Path(file)) if file else {}
    about = facts(_value(args, "--data") or values.get("data", "digits"))
    model = _value(args, "--model") or values.get("model", {}).get("preset")
    return Train(with_file(default_recipe(about, model), values))


def _of_preset(kind: Callable[[str, ResNetConfig], Any], args: list[str]) -> Any:
    """A command with the fields of the preset named first on the line."""
    if len(args) < 2 or args[1].startswith("-"):
        return kind(tyro.MISSING, ResNetConfig())
    return kind(args[1], preset(args[1]))


# Command to its class and to its defaults, which may depend on the line.
COMMANDS: dict[str, tuple[type, Callable[[list[str]], Any]]] = {
    "train": (Train, _train),
    "summary": (Summary, partial(_of_preset, Summary)),
    "plan": (Plan, partial(_of_preset, Plan)),
    "bench": (Bench, lambda args: Bench()),
    "presets": (Presets, lambda args: Presets()),
    "convert": (Convert, lambda args: Convert(tyro.MISSING, tyro.MISSING)),
    "inspect": (Inspect, lambda args: Inspect(tyro.MISSING)),
    "predict": (Predict, lambda args: Predict(tyro.MISSING, tyro.MISSING)),
}


def run_train(command: Train, console: Console) -> int:
    """Train or resume; 130 or 143 where a signal ended it."""
    from residuum.train import loop
    from residuum.train.progress import Reporter
    from residuum.train.run import Run

    root = command.root.expanduser()
    if command.resume is not None:
        run, recipe = Run.open(command.resume)
        outcome = loop.resume(run, recipe, facts(recipe.data), root, Reporter(console))
    else:
        recipe, about = command.recipe, facts(command.recipe.data)
        check_fit(recipe, about)
        run = Run(command.out or free_folder(Path("runs"), recipe.data))
        outcome = loop.start(recipe, about, run.path, root, Reporter(console))

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    if outcome.stopped_by is not None:
        say(f"stopped and saved; go on with:  residuum train --resume {run.path}")
        return 128 + outcome.stopped_by
    say(
        f"test accuracy {100 * outcome.metrics['test_accuracy']:.2f} % "
        f"after {outcome.metrics['epoch']} epochs in {outcome.seconds:.1f} s; run in {run.path}"
    )
    say(f"predict with:  residuum predict {run.path} IMAGE ...")
    return 0


def run_predict(command: Predict, console: Console) -> int:
    """Print the likeliest classes of each image."""
    from rich.table import Table

    from residuum.predict import predict

    table = Table("image", "class", "probability")
    for prediction in predict(command.run, command.images, top=command.top, device=command.device):
        for rank, (name, probability) in enumerate(prediction.classes):
            table.add_row("" if rank else prediction.path, name, f"{100 * probability:.1f} %")
    console.print(table)
    return 0


def run_summary(command: Summary, console: Console) -> int:
    """Print the table; draw where asked."""
    from residuum.draw import check_drawable, draw
    from residuum.summary import summarise, usual_size

    if command.draw is not None:
        check_drawable(command.draw)
    size = command.size or usual_size(command.model)
    if min(size) < 1 or command.batch < 1:
        raise ConfigError(f"size is {size} and batch {command.batch}; both must be positive")
    totals = summarise(
        console, command.preset, command.model, size, command.batch, command.precision, layers=command.layers
    )
    if command.draw is not None:
        draw(
            command.model,
            command.draw,
            name=command.preset,
            figures=f"{totals} for {_images(command.batch, size)}",
            size=size,
        )
        console.print(f"drawn: {command.draw}", highlight=False, soft_wrap=True)
    return 0


def _images(batch: int, size: tuple[int, int]) -> str:
    return f"{'an image' if batch == 1 else f'{batch} images'} of {size[0]}x{size[1]}"


def run_plan(command: Plan, console: Console) -> int:
    """Print the plan; draw where asked."""
    from residuum.draw import check_drawable
    from residuum.summary import usual_size

    budget = parse_size(command.memory) if command.memory is not None else None
    if command.draw is not None:
        check_drawable(command.draw)
    size = command.size or usual_size(command.model)
    if min(size) < 1 or command.batch_size < 1:
        raise ConfigError(f"size is {size} and batch_size {command.batch_size}; both must be positive")
    import torch

    from residuum.devices import free_memory, pick_device, set_up
    from residuum.memory.plan import Planner
    from residuum.memory.report import draw_frontier, print_plan
    from residuum.nn.resnet import ResNet

    device = pick_device(command.device)
    budget = free_memory(device) if budget is None else budget
    dtype = torch.bfloat16 if command.precision == "bf16" else None
    with torch.device("meta"):
        model = ResNet(command.model).to(memory_format=torch.channels_last)
    set_up(device)  # as training does, so that it is timed as it runs
    planner = Planner(model, size=size, dtype=dtype, optimizer=command.optimizer, device=device)
    plan = planner.plan(command.batch_size, budget)
    print_plan(console, planner, plan, command.preset, budget)
    if command.draw is not None:
        draw_frontier(planner, plan, command.draw, command.preset)
        console.print(f"drawn: {command.draw}", highlight=False, soft_wrap=True)
    return 0


def run_bench(command: Bench, console: Console) -> int:
    """Compare, count lines, or set two reports side by side."""
    from residuum.bench import run

    if command.compare is not None:
        run.compare_reports(*command.compare, console)
        return 0
    contenders = run.contenders_of(command.contenders, command.baseline)
    if command.lines:
        run.print_lines(contenders, console)
        return 0
    from residuum.devices import pick_device

    cells = run.cells_of(
        command.models,
        command.tasks,
        command.precisions,
        command.layouts,
        command.modes,
        command.batch_sizes,
        command.size,
        pick_device(command.device),
    )
    run.bench(
        cells,
        contenders,
        command.baseline,
        sittings=command.sittings,
        rounds=command.rounds,
        threads=command.threads,
        out=command.out or free_folder(Path("runs"), "bench"),
        command=shlex.join(["residuum", *sys.argv[1:]]),
        console=console,
    )
    return 0


def run_presets(command: Presets, console: Console) -> int:
    """Print the list."""
    from residuum.summary import list_presets

    list_presets(console, command.contains)
    return 0


def run_convert(command: Convert, console: Console) -> int:
    """Convert, and say what was written."""
    from residuum.weights import convert

    config = convert(command.source, command.target, command.to)
    console.print(
        f"written: {command.target}, in the layout of {command.to}: depth {config.depth}, {config.num_classes} classes",
        highlight=False,
        soft_wrap=True,
    )
    if command.to == "detectron2":
        console.print("detectron2 feeds BGR: its config must say INPUT.FORMAT 'RGB' for weights trained on RGB images.")
    return 0


def run_inspect(command: Inspect, console: Console) -> int:
    """Print what was found."""
    from rich.table import Table

    from residuum.weights import inspect

    found = inspect(command.source)
    usual = ResNetConfig()
    table = Table(show_header=False)
    table.add_row("layout", found.layout)
    exact = not found.differing
    table.add_row("fits" if exact else "nearest", ", ".join(found.presets))
    if not exact:
        table.add_row("differs in", ", ".join(found.differing))
    fields = {name: value for name, value in found.config.to_dict().items() if value != getattr(usual, name)}
    table.add_row("config", "\n".join(f"{name} = {value}" for name, value in fields.items()) or "that of resnet50")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("precision", ", ".join(found.precisions))
    table.add_row("NaN or infinite", ", ".join(found.not_finite) or "none")
    console.print(table)
    return 0


RUN: dict[type, Callable[[Any, Console], int]] = {
    Train: run_train,
    Predict: run_predict,
    Summary: run_summary,
    Plan: run_plan,
    Bench: run_bench,
    Presets: run_presets,
    Convert: run_convert,
    Inspect: run_inspect,
}


def _value(args: Sequence[str], flag: str) -> str | None:
    """The last value of a flag on the line, or None."""
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def parse(args: list[str]) -> Any:
    """The command on the line, as one of the dataclasses above."""
    named = args[0] if args else ""
    if named == "train" and _value(args, "--resume") is not None:
        extra = [a.partition("=")[0] for a in args[1:] if a.startswith("--") and a.partition("=")[0] != "--resume"]
        if extra:
            raise ConfigError(f"--resume takes the recipe from the run; leave out {' '.join(extra)}")
    union = tyro.extras.subcommand_type_from_defaults(
        {name: default(args if name == named else []) for name, (_, default) in COMMANDS.items()},
        descriptions={name: (kind.__doc__ or "").partition(". ")[0] for name, (kind, _) in COMMANDS.items()},
    )
    return tyro.cli(union, prog="residuum", args=args, description="The residual network family, from one config.")


def main() -> None:
    """Entry point: exits 0, 2 for a user's mistake (one sentence on standard error), 128 + the signal when stopped."""
    try:
        command = parse(sys.argv[1:])
        code = RUN[type(command)](command, Console())
        sys.stdout.flush()
    except ResiduumError as error:
        Console(stderr=True).print(Text("error: ", "bold red") + Text(str(error), "default"), soft_wrap=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
