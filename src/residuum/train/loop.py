"""The training loop: plain PyTorch, from a recipe to a run folder."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from residuum.data.catalog import Facts
from residuum.data.loaders import Augmentation, Batches, make_batches
from residuum.data.sources import Source, open_source
from residuum.devices import choose_precision, free_memory, held_memory, pick_device, set_up
from residuum.errors import ConfigError, DataError, DivergedError, RunError, WeightsError, first_line
from residuum.memory.planner import Plan, Planner
from residuum.nn.resnet import ResNet
from residuum.train.loggers import Reporter
from residuum.train.recipe import Recipe
from residuum.train.run import Run
from residuum.units import parse_size, show_size
from residuum.weights.files import save

SAVE_EVERY = 600.0  # seconds between saves of the state within an epoch


@dataclass
class Progress:
    """How far a run is: finished epochs' metrics, the batch that comes next, and this epoch's sums so far."""

    epoch: int = 0
    step: int = 0
    seen: int = 0  # images in this epoch so far
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.empty(0))  # one per step of this epoch, on the device
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))

    def begin_epoch(self, steps: int, device: torch.device) -> None:
        """Empty sums for an epoch of so many steps."""
        self.step = self.seen = 0
        self.losses = torch.zeros(steps, device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)


def rate(step: int, *, total: int, warmup: float) -> float:
    """The learning rate of a step as a share of its peak: a straight rise, then half a cosine down (1608.03983)."""
    rise = round(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))) / 2


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the last epoch's metrics, seconds of training in all, and the signal that ended it early."""

    metrics: dict[str, Any]
    seconds: float
    stopped_by: int | None


class Stop:
    """Whether SIGINT or SIGTERM has come. The first is kept until the step is over; a second acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch both signals within the block."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, before[signal.Signals(number)])

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Session:
    """One process's part of a run: network, optimizer and batches on the device, and the progress through them."""

    def __init__(self, recipe: Recipe, source: Source, device: torch.device) -> None:
        self.recipe, self.source, self.device = recipe, source, device
        self.bf16 = recipe.precision == "bf16"
        torch.manual_seed(recipe.seed)
        self.model = ResNet(recipe.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plan = self._fit() if recipe.memory else None
        self.train_batches = self._batches(train=True)
        self.test_batches = self._batches(train=False)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            fused=device.type in ("cpu", "cuda", "mps"),
        )
        steps = len(self.train_batches)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, partial(rate, total=recipe.epochs * steps, warmup=recipe.warmup)
        )
        self.progress = Progress()
        self.progress.begin_epoch(steps, device)

    def _fit(self) -> Plan:
        """Recompute what it takes to stay within the budget, of which this process holds a part already."""
        recipe, device = self.recipe, self.device
        dtype = torch.bfloat16 if self.bf16 else None
        budget = free_memory(device) if recipe.memory == "auto" else parse_size(recipe.memory)
        own = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))
        held = max(held_memory(device) - own, 0)
        planner = Planner(
            self.model,
            size=self.source.preprocessing.image_size,
            dtype=dtype,
            optimizer="sgd" if recipe.momentum else "none",
            device=device,
        )
        least = planner.least(recipe.batch_size)
        if least > budget - held:
            raise ConfigError(
                f"a batch of {recipe.batch_size} does not fit {show_size(budget)}: {show_size(held)} are taken before "
                f"the first step, and recomputing the most takes {show_size(least)} more; "
                f"give {show_size(least + held, enough=True)} or a smaller --batch-size"
            )
        plan = planner.plan(recipe.batch_size, budget - held)
        plan.apply(self.model)
        return plan

    def _batches(self, *, train: bool) -> Batches:
        recipe = self.recipe
        return make_batches(
            self.source.train if train else self.source.test,
            self.source.preprocessing,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            train=train,
            augmentation=Augmentation(recipe.pad, recipe.flip),
            device=self.device,
            workers=recipe.workers,
            skip_bad_images=recipe.skip_bad_images,
        )

    def forward(self, images: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean loss, and how many are right."""
        # Weights in bf16 belong to the block that uses them, not to the whole pass: a recomputed block frees them.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        return loss, (logits.argmax(1) == labels).sum()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of training, its loss and right answers added to the progress."""
        self.optimizer.zero_grad(set_to_none=True)  # before the forward pass, which then has their memory
        loss, correct = self.forward(images, labels, self.recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.progress.losses[self.progress.step] = loss.detach()
        if self.device.type == "cpu":  # reading the loss costs nothing here, so weights never see a bad one
            self.check_finite()
        self.optimizer.step()
        self.schedule.step()
        self.progress.correct += correct
        self.progress.seen += len(labels)
        self.progress.step += 1

    def check_finite(self) -> None:
        """Raise `DivergedError` if a loss of this epoch is no number."""
        bad = (~self.progress.losses.isfinite()).nonzero()
        if len(bad):
            step = int(bad[0]) + 1
            raise DivergedError(
                f"the loss became {self.progress.losses[step - 1].item()} in epoch {self.progress.epoch + 1}, "
                f"step {step} of {len(self.train_batches)}; the run keeps its last good state. "
                f"Try a lower learning rate than {self.recipe.lr:g}, or --precision fp32"
            )

    @torch.inference_mode()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy, 0 to 1, on the test part."""
        self.model.eval()
        loss, correct, count = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for images, labels in self.test_batches.epoch(0):
            batch_loss, batch_correct = self.forward(images, labels)
            loss += batch_loss.double().cpu() * len(labels)
            correct += batch_correct.cpu()
            count += len(labels)
        self.model.train()
        return float(loss / count), float(correct / count)

    def state(self) -> dict[str, Any]:
        """Everything that going on from here needs."""
        progress = self.progress
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": progress.epoch,
            "step": progress.step,
            "seen": progress.seen,
            "seconds": progress.seconds,
            "history": progress.history,
            "losses": progress.losses,
            "correct": progress.correct,
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; raises `RunError` where it belongs to another recipe or dataset."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            losses, correct = state["losses"].to(self.device), state["correct"].to(self.device)
            counts = {name: state[name] for name in ("epoch", "step", "seen", "seconds", "history")}
            progress = Progress(**counts, losses=losses, correct=correct)
            torch.set_rng_state(state["random"])
            if state["device_random"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["device_random"], self.device)
        except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise RunError(f"the saved state does not fit this run's config ({first_line(error)})") from None
        if len(losses) != len(self.train_batches):
            raise RunError(
                f"the saved run had {len(losses)} steps an epoch and this one has {len(self.train_batches)}: "
                "the data has changed since"
            )
        self.progress = progress


def start(recipe: Recipe, facts: Facts, out: Path, root: Path, reporter: Reporter) -> Outcome:
    """Train anew into the folder `out`; nothing is written before data, device and network are found to be right."""
    device = pick_device(recipe.device)
    if out.exists():
        raise RunError(f"{out} exists already; choose another --out, or go on with it by --resume {out}")
    precision, why = choose_precision(recipe.precision, device)
    recipe = recipe.replace(precision=precision, device=str(device))
    session = _session(recipe, facts, root, device)
    run = Run.create(out, recipe)
    reporter.begin(recipe, session, run, why)
    try:
        _save(run, session)
        return _train(run, session, reporter)
    except (DataError, RunError, WeightsError):
        if session.progress.epoch == 0:  # an image or a disk that is bad from the start leaves nothing behind
            run.remove()
        raise


def resume(run: Run, recipe: Recipe, facts: Facts, root: Path, reporter: Reporter) -> Outcome:
    """Go on with a run where its state was saved; it ends with the weights that it would have had without the stop."""
    device = pick_device(recipe.device)
    state = run.load_state()
    session = _session(recipe, facts, root, device)
    session.restore(state)
    if session.progress.epoch >= recipe.epochs:
        raise RunError(f"{run.path} is complete: all {recipe.epochs} epochs are done, there is nothing to resume")
    reporter.begin(recipe, session, run, "as before")
    return _train(run, session, reporter)


def _session(recipe: Recipe, facts: Facts, root: Path, device: torch.device) -> Session:
    set_up(device)
    source = open_source(
        facts,
        channels=recipe.model.in_channels,
        image_size=recipe.image_size,
        root=root,
        skip_bad_images=recipe.skip_bad_images,
    )
    return Session(recipe, source, device)


def _train(run: Run, session: Session, reporter: Reporter) -> Outcome:
    progress, recipe, stop = session.progress, session.recipe, Stop()
    steps = len(session.train_batches)
    session.model.train()
    with stop.listening(), reporter.running(recipe.epochs, steps, progress):
        while progress.epoch < recipe.epochs and stop.signal is None:
            begin, saved = time.monotonic(), time.monotonic()
            before = progress.seconds
            for images, labels in session.train_batches.epoch(progress.epoch, progress.step):
                session.step(images, labels)
                reporter.step(session, len(labels))
                progress.seconds = before + time.monotonic() - begin
                if stop.signal is not None and progress.step < steps:
                    break
                if time.monotonic() - saved > SAVE_EVERY:
                    session.check_finite()
                    _save(run, session)
                    saved = time.monotonic()
            session.check_finite()
            if progress.step == steps:
                _finish_epoch(run, session, reporter, before + time.monotonic() - begin)
            _save(run, session)
    run.draw_curves(progress.history)
    reporter.left_out(sorted(session.train_batches.skipped | session.test_batches.skipped))
    return Outcome(progress.history[-1] if progress.history else {}, progress.seconds, stop.signal)


def _finish_epoch(run: Run, session: Session, reporter: Reporter, seconds: float) -> None:
    progress = session.progress
    spent = seconds - sum(row["seconds"] for row in progress.history)
    test_loss, test_accuracy = session.evaluate()
    row = {
        "epoch": progress.epoch + 1,
        "train_loss": float(progress.losses.double().mean()),
        "train_accuracy": float(progress.correct) / progress.seen,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "learning_rate": session.optimizer.param_groups[0]["lr"],
        "images_per_second": progress.seen / spent,
        "seconds": spent,
    }
    progress.history.append(row)
    progress.seconds = seconds
    progress.epoch += 1
    progress.begin_epoch(len(session.train_batches), session.device)
    run.save_metrics(progress.history)
    reporter.epoch(row, session.recipe.epochs)


def _save(run: Run, session: Session) -> None:
    """The state last: a run whose state says an epoch is done has that epoch's weights and metrics on disk."""
    source = session.source
    save(session.model, run.weights, classes=source.classes, preprocessing=source.preprocessing)
    run.save_state(session.state())
