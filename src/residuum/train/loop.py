"""The training loop: epochs of steps, evaluation after each, and what must not be missed between two steps.

It knows neither run folder nor console. What it is given: the state, the network as it is called (the state's own, or
that one wrapped or compiled), loaders, and callbacks that are told numbers.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from residuum.data.augmentation import seed_for
from residuum.data.loaders import Loader
from residuum.errors import DataError, DivergedError, first_line
from residuum.nn.stochastic_depth import seed_stochastic_depth
from residuum.train.chunks import Cut, train_chunks
from residuum.train.clock import Clock, Phase
from residuum.train.distributed import ALONE, Team
from residuum.train.finetune import thaw_in_time
from residuum.train.loggers import Callback, Snapshot
from residuum.train.mixing import mix
from residuum.train.optim import learning_rate, make_loss, set_learning_rate
from residuum.train.recipe import Recipe
from residuum.train.state import State
from residuum.train.step import Evaluation, evaluate, train_step
from residuum.train.sync_norm import place_draws

LOOK_EVERY = 0.2  # seconds; reading the loss from an accelerator makes it wait
LOOK_STEPS = 50  # steps after which the loss is read at the latest
_WHOLE = Cut()


@dataclass
class Pace:
    """When the loop last looked and saved, and what it has done since."""

    looked: float = field(default_factory=time.monotonic)
    steps: int = 0
    steps_looked: int = 0
    images: int = 0
    saved: float = field(default_factory=time.monotonic)


def train_epochs(
    state: State,
    net: Callable[[Tensor], Tensor],
    recipe: Recipe,
    train: Loader,
    val: Loader | None,
    *,
    callbacks: Sequence[Callback] = (),
    save: Callable[[], None] = lambda: None,
    save_every: float = math.inf,
    stopped: Callable[[], bool] = lambda: False,
    watched: Callable[[Iterator[Any]], Iterator[Any]] = iter,
    team: Team = ALONE,
) -> None:
    """Train from where the state is to the last epoch, or to the step at which `stopped` says so in any of the team.

    `save` is called after each epoch, every `save_every` seconds within one, when stopped and when the data fails, but
    never after a loss that is no number. Raises `DivergedError` for such a loss and `DataError` for images that cannot
    be read; what was saved before is then the state to go on from. `watched` may look at what is done with each epoch's
    batches, and gives them on unchanged.
    """
    progress, steps, cut = state.progress, len(train), Cut.of(train.schedule)
    state.network.train()
    pace, clock = Pace(), Clock(state.device, progress.spent)

    def save_now() -> None:
        clock.lap("other")
        clock.read()  # what is saved holds the time that it took to get there
        save()
        clock.lap("save")
        pace.saved = time.monotonic()

    while progress.epoch < recipe.epochs and not team.largest(stopped()):
        begin, before = time.monotonic(), progress.seconds
        try:
            batches = team.batches(train.epoch(progress.epoch, progress.step), stopped)
            for images, labels, count in watched(clock.batches(batches)):
                step(state, net, recipe, images, labels, steps, clock.lap, count=count, cut=cut, team=team)
                pace.steps, pace.images = pace.steps + 1, pace.images + count
                progress.seconds = before + time.monotonic() - begin
                _look(state, recipe, steps, val, pace, clock, callbacks)
                if time.monotonic() - pace.saved > save_every:
                    check_finite(state, recipe)
                    save_now()
            check_finite(state, recipe)
            if progress.step == steps:
                seconds = before + time.monotonic() - begin
                digest = train.schedule.digest(progress.epoch)
                _finish_epoch(state, recipe, steps, val, seconds, digest, clock, callbacks, team)
        except DataError:  # of a training image, or of one of the validation split: the steps taken are not lost
            if progress.epoch or progress.step:
                check_finite(state, recipe)
                save_now()
            raise
        save_now()


def step(
    state: State,
    net: Callable[[Tensor], Tensor],
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    steps: int,
    lap: Callable[[Phase], None] = lambda phase: None,
    *,
    count: int | None = None,
    cut: Cut = _WHOLE,
    team: Team = ALONE,
) -> None:
    """One step, everything random in it seeded by its place in the run; its sums are added to the progress.

    Images and labels are this process's, `count` those of all; they are `cut` into chunks.
    """
    progress = state.progress
    number = progress.epoch * steps + progress.step
    count = len(labels) if count is None else count
    thaw_in_time(state.network, recipe, number, recipe.epochs * steps)
    set_learning_rate(state.optimizer, learning_rate(number, recipe, steps))
    chunks = _chunks(state, recipe, images, labels, steps, cut, team)
    how: Any = {
        "bf16": recipe.precision == "bf16",
        "loss": make_loss(recipe.loss, weights=state.class_weights),
        "lap": lap,
    }
    try:
        if cut.count == 1 and not cut.places:
            loss, correct = train_step(net, state.optimizer, *next(chunks), **how)
        else:
            loss, correct = train_chunks(net, state.network, state.optimizer, chunks, cut, count, team, **how)
    except ValueError as error:  # torch's word for a norm that has one value to take a mean of
        if len(labels) > len(cut.own):
            raise
        raise DataError(
            f"step {progress.step + 1} of epoch {progress.epoch + 1} has one image, and its batch norms need more "
            f"({first_line(error)}); mend the images that cannot be read, or take another --batch-size"
        ) from None
    if state.average is not None:
        state.average.update_parameters(state.network)
    progress.losses[progress.step] = loss
    progress.correct = progress.correct + correct  # whole numbers, and shares once images are mixed
    progress.seen += count
    progress.step += 1
    if loss.device.type == "cpu" and not math.isfinite(float(loss)):  # reading it costs nothing here
        check_finite(state, recipe)
    lap("step")


def _chunks(
    state: State, recipe: Recipe, images: Tensor, labels: Tensor, steps: int, cut: Cut, team: Team
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and targets of each of this process's chunks; what the network draws is seeded as one is given."""
    progress = state.progress
    for chunk, inputs, answers in zip(cut.own, cut.apart(images), cut.apart(labels), strict=True):
        seed = seed_for(recipe.seed, progress.epoch, progress.step, chunk)
        _seed(state.device, seed)  # dropout
        if recipe.model.stochastic_depth:
            seed_stochastic_depth(state.network, seed, seed)
        if cut.places:
            place_draws(state.network, *cut.places[chunk])
        yield _mixed(state, recipe, inputs, answers, steps, chunk, team if cut.places else ALONE)


def _mixed(
    state: State, recipe: Recipe, images: Tensor, labels: Tensor, steps: int, chunk: int, team: Team
) -> tuple[Tensor, Tensor]:
    """Images and targets of a chunk, which a team may share, mixed where the recipe says so."""
    progress, settings = state.progress, recipe.mixing
    number, total = progress.epoch * steps + progress.step, recipe.epochs * steps
    if not (settings.mixup or settings.cutmix) or number >= round((1 - settings.off) * total):
        return images, labels
    mixed = mix(
        images,
        labels,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        seed=recipe.seed,
        epoch=progress.epoch,
        step=progress.step,
        chunk=chunk,
        before=team.previous(images[-1:], labels[-1:]) if team.world > 1 else None,
    )
    return mixed.images, mixed.targets(recipe.model.num_classes)


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that layers on the device draw from. `torch.manual_seed` takes 50 times as long for it."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def check_finite(state: State, recipe: Recipe) -> None:
    """Raise `DivergedError` if a loss of this epoch is no number."""
    progress = state.progress
    bad = (~progress.losses[: progress.step].isfinite()).nonzero()
    if len(bad):
        number = int(bad[0]) + 1
        raise DivergedError(
            f"the loss became {progress.losses[number - 1].item()} in epoch {progress.epoch + 1}, step {number} of "
            f"{len(progress.losses)}; the run keeps its last good state. Try a lower learning rate than "
            f"{recipe.optimizer.lr:g}" + (", or --precision fp32" if recipe.precision != "fp32" else "")
        )


def _look(
    state: State,
    recipe: Recipe,
    steps: int,
    val: Loader | None,
    pace: Pace,
    clock: Clock,
    callbacks: Sequence[Callback],
) -> None:
    """Now and then: see that the loss is a number, and tell how things stand."""
    now = time.monotonic()
    if now - pace.looked < LOOK_EVERY and pace.steps - pace.steps_looked < LOOK_STEPS:
        return
    check_finite(state, recipe)
    clock.read()
    progress = state.progress
    done = progress.epoch * steps + progress.step
    snapshot = Snapshot(
        epoch=progress.epoch,
        epochs=recipe.epochs,
        step=progress.step,
        steps=steps,
        loss=float(progress.losses[: progress.step].mean()),
        accuracy=float(progress.correct) / progress.seen,
        images_per_second=pace.images / max(now - pace.looked, 1e-9),
        seconds_left=clock.left(
            recipe.epochs * steps - done, recipe.epochs - progress.epoch, len(val) if val is not None else 0
        ),
        images=progress.seen,
        val_accuracy=progress.history[-1].get("val_accuracy") if progress.history else None,
        seconds=dict(progress.spent),
    )
    for callback in callbacks:
        callback.look(snapshot)
    pace.looked, pace.steps_looked, pace.images = time.monotonic(), pace.steps, 0


def _finish_epoch(
    state: State,
    recipe: Recipe,
    steps: int,
    val: Loader | None,
    seconds: float,
    digest: str,
    clock: Clock,
    callbacks: Sequence[Callback],
    team: Team,
) -> None:
    """Evaluate, and note the epoch in the history."""
    progress = state.progress
    spent = seconds - sum(row["seconds"] for row in progress.history)
    row: dict[str, Any] = {
        "epoch": progress.epoch + 1,
        "train_loss": float(progress.losses.cpu().double().mean()),
        "train_accuracy": float(progress.correct) / progress.seen,
        "data_digest": digest,
    }
    clock.lap("other")
    if val is not None:
        found = look_at(state.result, val, "val", recipe, callbacks, team)
        row |= {"val_loss": found.loss, "val_accuracy": found.accuracy}
        clock.lap("evaluate")
    clock.read()
    last = (progress.epoch + 1) * steps - 1
    row |= {
        "learning_rate": learning_rate(last, recipe, steps),
        "images_per_second": progress.seen / spent,
        "seconds": spent,
        **{f"seconds_{phase}": progress.spent[phase] for phase in get_args(Phase) if phase in progress.spent},
    }
    progress.spent.clear()
    progress.history.append(row)
    progress.seconds = seconds
    progress.epoch += 1
    progress.begin_epoch(steps, state.device)
    for callback in callbacks:
        callback.epoch(row, recipe.epochs)


def look_at(
    net: nn.Module,
    loader: Loader,
    split: str,
    recipe: Recipe,
    callbacks: Sequence[Callback] = (),
    team: Team = ALONE,
) -> Evaluation:
    """`evaluate` on a whole split, of which each process has a part; the callbacks are told how far it is."""

    def tick(batches: int) -> None:
        for callback in callbacks:
            callback.evaluating(split, batches, len(loader))

    loss = make_loss(recipe.loss, train=False)
    own = evaluate(net, loader.epoch(0), bf16=recipe.precision == "bf16", loss=loss, tick=tick)
    if team.world == 1:
        return own
    total, correct, images = team.total(own.total, own.correct, own.images)
    return Evaluation(total, int(correct), int(images))
