"""What a run would take, from a few steps of it that are timed and thrown away. Nothing is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from residuum.data.catalog import Catalog, scan
from residuum.devices import now, pick_device
from residuum.errors import quoted
from residuum.memory.planner import Plan, Planner
from residuum.train.chunks import Cut
from residuum.train.clock import Clock, waiting
from residuum.train.execution import Execution
from residuum.train.finetune import read_start
from residuum.train.loggers import Callback
from residuum.train.loop import step
from residuum.train.losses import smoothed
from residuum.train.mixing import mix
from residuum.train.optim import learning_rate, state_kept
from residuum.train.recipe import Recipe, check_fit
from residuum.train.schedules import steps_of
from residuum.train.session import Job, beside_a_step, facts, generators_kept, precision_for, prepare
from residuum.train.step import forward

STEPS = 20  # timed at most
WARM_UP = 2  # steps before, which also fill caches
SECONDS = 3.0  # after which no other is begun


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take: seconds with evaluation and reading of images, bytes of a step's tensors."""

    recipe: Recipe
    train_images: int
    val_images: int
    steps: int  # of an epoch
    step_seconds: float
    seconds: float
    memory: int
    images: int  # that a process has in memory at once: a step's, or those of a chunk
    waiting: float  # share of a step, 0 to 1
    target: str  # of the first image that is mixed, class by class; empty where none are
    facts: Mapping[str, str]  # what a run says as it begins: topic to sentence
    plan: Plan | None = None  # what is recomputed, where there is a budget

    def rates(self, points: int = 5) -> tuple[tuple[int, float], ...]:
        """Steps, counted from 1, and their learning rates: the first, the highest, the last, and some on the way."""
        total, recipe = self.recipe.epochs * self.steps, self.recipe
        peak = max(steps_of(recipe.schedule.warmup, total, recipe.epochs) - 1, 0)
        places = {round(i * (total - 1) / (points - 1)) for i in range(points)} | {peak}
        return tuple((place + 1, learning_rate(place, recipe, self.steps)) for place in sorted(places))

    def curve(self, points: int) -> tuple[float, ...]:
        """The highest learning rate within each of so many equal parts of the run, at least a step long."""
        total = self.recipe.epochs * self.steps
        points = min(points, total)
        edges = [i * total // points for i in range(points + 1)]
        return tuple(
            max(learning_rate(place, self.recipe, self.steps) for place in {first, (first + last - 1) // 2, last - 1})
            for first, last in pairwise(edges)
        )


def estimate(
    recipe: Recipe,
    execution: Execution | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    catalog: Catalog | None = None,
    resumed: bool = False,
) -> Estimate:
    """Expected steps, seconds and bytes of a run: its first steps are taken on its own data, and forgotten.

    `resumed` is for a run that goes on, which has the weights that it began from in its state. Raises `ResiduumError`
    where the run could not begin either.
    """
    execution = execution or Execution()
    device = pick_device(execution.device)
    catalog = catalog or scan(recipe.data.path)
    check_fit(recipe, catalog)
    precision, why = precision_for(recipe, catalog, device)
    recipe = recipe.replace(precision=precision)
    recipe, weights = (recipe, None) if resumed else read_start(recipe)
    with generators_kept(device):
        job = prepare(recipe, execution, catalog, device, callbacks, weights)
        told, memory = facts(job, why), _memory(job)
        steps = len(job.train)
        seconds: dict[str, float] = {}
        step_seconds = _step_seconds(job, Clock(device, seconds))
        val, target = job.dataset.val, _target(job)
        epoch = steps * step_seconds + (len(job.val) * _val_seconds(job) if job.val is not None else 0.0)
    return Estimate(
        recipe,
        len(job.dataset.train.labels),
        len(val.labels) if val is not None else 0,
        steps,
        step_seconds,
        recipe.epochs * epoch,
        memory,
        max(Cut.of(job.train.schedule).sizes),
        waiting(seconds),
        target,
        told,
        job.plan,
    )


def _step_seconds(job: Job, clock: Clock) -> float:
    """Of a step and of what its images take to come: the mean over the sizes that images have in the run.

    The clock is left with the steps that are timed.
    """
    epochs = job.recipe.epochs
    sizes = [job.recipe.augment.size_in(epoch, epochs) for epoch in range(epochs)]
    return sum(sizes.count(size) * _seconds_in(job, sizes.index(size), clock) for size in set(sizes)) / epochs


def _batches(job: Job, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from job.train.epoch(epoch)


def _seconds_in(job: Job, epoch: int, clock: Clock) -> float:
    state, net, steps, earlier = job.state, job.net, len(job.train), dict(clock.seconds)
    state.network.train()
    begin = now(state.device)
    for count, (images, labels) in enumerate(clock.batches(_batches(job, epoch)), 1):
        state.progress.step %= steps
        step(state, net, job.recipe, images, labels, steps, clock.lap, cut=Cut.of(job.train.schedule))
        seconds = now(state.device) - begin
        clock.read()
        if count == WARM_UP:
            clock.seconds.clear()
            clock.seconds.update(earlier)
            begin = now(state.device)
        elif count > WARM_UP and (count == WARM_UP + STEPS or seconds > SECONDS):
            return seconds / (count - WARM_UP)
    raise AssertionError("epochs go on for ever")


def _target(job: Job) -> str:
    """`0.700 cat, 0.300 dog`: what the first image of a mixed step is trained to be, label smoothing included."""
    recipe, classes = job.recipe, job.dataset.classes
    settings = recipe.mixing
    if not (settings.mixup or settings.cutmix):
        return ""
    images, labels = next(job.train.epoch(0))
    mixed = mix(images, labels, mixup=settings.mixup, cutmix=settings.cutmix, seed=recipe.seed, epoch=0, step=0)
    shares = mixed.targets(len(classes))[:1]
    if recipe.loss.threshold is not None:
        shares = (shares > recipe.loss.threshold).float()
    row = smoothed(shares, recipe.loss.label_smoothing)[0].tolist()
    order = sorted(range(len(row)), key=lambda label: -row[label])
    named = [label for label in order if row[label] > min(row)]
    words = [f"{row[label]:.3f} {quoted(classes[label], 40)}" for label in named]
    others = len(row) - len(named)
    return ", ".join([*words, *([f"{min(row):.3f} each of {others} others"] if others else [])])


@torch.inference_mode()
def _val_seconds(job: Job) -> float:
    """Of a batch of evaluation."""
    assert job.val is not None
    network, device = job.state.result, job.state.device
    network.eval()
    begin = now(device)
    for count, (images, labels) in enumerate(job.val.epoch(0), 1):
        forward(network, images, labels, bf16=job.recipe.precision == "bf16")
        if count == STEPS or now(device) - begin > SECONDS:
            break
    return (now(device) - begin) / count


def _memory(job: Job) -> int:
    """Bytes of a step as it is planned: parameters, gradients, optimizer, average, images and activations."""
    recipe, network, cut = job.recipe, job.state.network, Cut.of(job.train.schedule)
    plan = job.plan
    if plan is None:
        plan = Planner(
            network,
            image_size=recipe.augment.largest_size or job.dataset.preprocessing.image_size,
            dtype=torch.bfloat16 if recipe.precision == "bf16" else None,
            optimizer=state_kept(recipe.optimizer),
        ).uniform(max(cut.sizes), "none")
    return plan.peak + beside_a_step(network, recipe, cut)
