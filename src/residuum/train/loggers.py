"""What a training run shows: a header, a progress bar while it runs, a line per epoch."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from residuum.units import show_size

if TYPE_CHECKING:
    from residuum.train import loop
    from residuum.train.recipe import Recipe
    from residuum.train.run import Run

REFRESH = 0.2  # seconds; reading the loss from an accelerator makes it wait


class Reporter:
    """Writes a run's progress to a console: a live bar on a terminal, lines alone elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown, self.images = time.monotonic(), 0

    def begin(self, recipe: "Recipe", session: "loop.Session", run: "Run", why: str) -> None:
        """What will be trained on what, and how."""
        source, plan = session.source, session.plan
        parameters = sum(p.numel() for p in session.model.parameters())
        height, width = source.preprocessing.image_size
        say = self.console.print
        say(
            f"data       {recipe.data}: {len(source.train):,} train, {len(source.test):,} test images, "
            f"{len(source.classes)} classes, {height}x{width}",
            highlight=False,
        )
        say(f"network    depth {recipe.model.depth}, {parameters:,} parameters", highlight=False)
        say(f"computing  {recipe.device}, {recipe.precision} ({why})", highlight=False)
        if plan is not None:
            say(
                f"memory     a step's tensors take {show_size(plan.peak)} of {recipe.memory}, "
                f"a step {plan.slowdown:.2f} times as long (predicted)",
                highlight=False,
                soft_wrap=True,
            )
        say(f"run        {run.path}", highlight=False, soft_wrap=True)
        self.left_out(source.skipped)

    def left_out(self, images: Sequence[str]) -> None:
        """Name the images that could not be decoded."""
        for image in images:
            self.console.print(f"left out   {image}", highlight=False, soft_wrap=True)

    @contextmanager
    def running(self, epochs: int, steps: int, progress: "loop.Progress") -> Iterator[None]:
        """Show the bar within the block."""
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(
            "train",
            total=epochs * steps,
            completed=progress.epoch * steps + progress.step,
            epoch=progress.epoch + 1,
            loss="-",
            accuracy="-",
            speed="-",
        )
        self.shown, self.images = time.monotonic(), 0
        with self.bar:
            yield

    def step(self, session: "loop.Session", images: int) -> None:
        """Count a step; now and then show loss, accuracy and speed."""
        self.images += images
        now = time.monotonic()
        if self.bar.disable or now - self.shown < REFRESH:
            return
        progress, steps = session.progress, len(session.train_batches)
        session.check_finite()
        self.bar.update(
            self.task,
            completed=progress.epoch * steps + progress.step,
            epoch=progress.epoch + 1,
            loss=f"{progress.losses[: progress.step].mean().item():.3f}",
            accuracy=f"{100 * progress.correct.item() / progress.seen:.1f} %",
            speed=f"{self.images / (now - self.shown):,.0f}",
        )
        self.shown, self.images = now, 0

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """One line for a finished epoch."""
        self.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"train loss {row['train_loss']:.3f}, {100 * row['train_accuracy']:4.1f} %  "
            f"test loss {row['test_loss']:.3f}, {100 * row['test_accuracy']:4.1f} %  "
            f"{row['images_per_second']:,.0f} images/s",
            highlight=False,
        )
        self.shown, self.images = time.monotonic(), 0
