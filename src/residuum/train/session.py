"""From a recipe to a trained network in a run folder: data, device, network and loop put together."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residuum.config import ResNetConfig
from residuum.data.balance import class_weights
from residuum.data.catalog import Catalog, scan
from residuum.data.loaders import Loader, MemoryLoader, make_loader
from residuum.data.sources import Dataset, Split, open_dataset
from residuum.devices import DTYPES, choose_precision, free_memory, held_memory, pick_device, set_up
from residuum.errors import ConfigError, DataError, DivergedError, RunError, WeightsError, quoted
from residuum.memory.in_place import choose_in_place
from residuum.memory.planner import Plan, Planner
from residuum.nn.resnet import ResNet
from residuum.train import environment
from residuum.train.bottleneck import WaitingForData, in_words, of_rows
from residuum.train.chunks import Cut
from residuum.train.clock import Clock
from residuum.train.compiling import compiled, need_compiler
from residuum.train.distributed import ALONE, Replica, Team, join, own_device
from residuum.train.execution import Execution
from residuum.train.finetune import freeze_for, frozen_parts, rates, read_start, take_weights, whole_path
from residuum.train.loggers import Beginning, Callback, ConsoleLogger
from residuum.train.loop import look_at, train_epochs
from residuum.train.optim import learning_rate, make_average, make_optimizer, set_norm_momentum, state_kept
from residuum.train.processes import Stop
from residuum.train.profiling import Profile
from residuum.train.recipe import Recipe, check_fit, differences
from residuum.train.run import BEST, DataRecord, Run, free_folder, refuse_existing
from residuum.train.state import State
from residuum.train.sync_norm import share_chunks
from residuum.train.trackers import need_trackers, open_trackers
from residuum.units import counted, parse_size, show_budget, show_size
from residuum.weights.checkpoint import Checkpoint, not_finite, some
from residuum.weights.files import write_ours

# Fields of the recipe that may change when a run is resumed: where the same files lie, and whether one that cannot be
# decoded ends the run.
MAY_CHANGE = ("data.path", "data.skip_bad_images")


@dataclass(frozen=True)
class Result:
    """How a run ended: its folder, a row of numbers for each epoch, seconds in all, the signal that ended it early."""

    # the run folder
    path: Path
    # a row of numbers for each epoch, as metrics.jsonl has it
    history: tuple[dict[str, Any], ...]
    # seconds in all
    seconds: float
    # number of the signal that ended it early
    stopped_by: int | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """The last epoch's row: losses, and accuracies from 0 to 1, of train, val and in the end test."""
        return self.history[-1] if self.history else {}


def fit(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    execution: Execution | None = None,
    callbacks: Sequence[Callback] | None = None,
    catalog: Catalog | None = None,
    profile: int = 0,
) -> Result:
    """Train anew into the folder `out`, `runs/DATA-N` where left out; without `callbacks` it tells the console.

    Nothing is written before data, device and network are found to be right. Ctrl-C and SIGTERM end it at the next step
    with everything saved. A `catalog` of the recipe's data that is at hand saves scanning it again. `profile` is the
    number of steps that are profiled, into the run folder. Raises `ResiduumError`.
    """
    execution = execution or Execution()
    team = join(execution.timeout)
    with team.together():
        need_trackers(execution)
        callbacks = _heard(callbacks, team)
        device = pick_device(own_device(execution.device, team))
        if out is not None:
            team.of_first(lambda: refuse_existing(Path(out)))
        asked = recipe.data.path
        catalog = catalog or scan(recipe.data.path)
        check_fit(recipe, catalog)
        precision, why = precision_for(recipe, catalog, device)
        recipe = recipe.replace({"data.path": catalog.location, "precision": precision})
        recipe, weights = read_start(with_norm_batch(recipe, 1 if execution.sync_norm else team.world))
        record = DataRecord.of(catalog)
        _refuse_other_work(recipe, execution, record, team)
        with generators_kept(device):
            job = prepare(recipe, execution, catalog, device, callbacks, weights, team)
            run = team.of_first(lambda: _create(out, asked, job, record))
            progress = job.state.progress
            try:
                if team.first:
                    callbacks = _listeners(job, run, callbacks)
                    _begin(job, run, why, callbacks)
                    _tell_saved(job, callbacks)
                return _train(job, run, callbacks, profile)
            except (DataError, RunError, WeightsError):
                if team.first and not (progress.epoch or progress.step):
                    run.remove()  # an image or a disk that is bad from the start leaves nothing
                raise


def resume(
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    execution: Execution | None = None,
    callbacks: Sequence[Callback] | None = None,
    profile: int = 0,
) -> Result:
    """Go on with a run where its state was saved; it ends with the weights that it would have had without the stop.

    `execution` is the run's own where left out. A `recipe` may differ from the run's in `MAY_CHANGE`, and have more
    epochs; any other difference, and data that has changed since, raise `RunError`. A complete run stays as it is.
    """
    run = Run(Path(path))
    team = join((execution or Execution()).timeout)
    with team.together():
        callbacks = _heard(callbacks, team)
        saved, own_execution, record = team.of_first(run.read)
        saved = with_norm_batch(saved, 1)  # runs from before there were chunks had one
        recipe = saved if recipe is None else _as_written(recipe, saved)
        _refuse_changes(saved, recipe)
        execution = execution or own_execution
        need_trackers(execution)
        device = pick_device(own_device(execution.device, team))
        catalog = scan(recipe.data.path)
        changed = record.changed(DataRecord.of(catalog))
        if changed is not None:
            raise RunError(
                f"the run cannot go on, as {quoted(recipe.data.path)} is not what it was: {changed}; put it back, or "
                "train anew"
            )
        recipe = recipe.replace({"data.path": catalog.location})
        _refuse_other_work(recipe, execution, record, team)
        why = _precision_here(recipe, device)
        values, fallen_back = team.of_first(run.load_state)
        with generators_kept(device):
            if fallen_back is not None:
                _say(callbacks, "state", fallen_back)
            job = prepare(recipe, execution, catalog, device, callbacks, team=team)
            job.state.restore(values)
            progress = job.state.progress
            if len(progress.losses) != len(job.train):
                raise RunError(
                    f"the run had {len(progress.losses)} steps an epoch and has {len(job.train)} now: images that can "
                    "be decoded have come or gone; put the data back, or train anew"
                )
            if progress.epoch >= recipe.epochs and not _owes_test(job):
                _say(callbacks, "complete", f"after {counted(recipe.epochs, 'epoch')}; go on by more --epochs")
                return Result(run.path, tuple(progress.history), progress.seconds)
            if recipe.epochs != saved.epochs:
                _say(callbacks, "epochs", extension(saved, recipe, progress.epoch * len(job.train), len(job.train)))
            if team.first:
                run.write_recipe(recipe, execution)
                longer = {"epochs": recipe.epochs} if recipe.epochs != saved.epochs else {}
                environment.note(run.path, {**environment.here(device), **longer}, progress.epoch)
                callbacks = _listeners(job, run, callbacks)
                _begin(job, run, why, callbacks)
                _tell_saved(job, callbacks)  # what was saved before a crash, and not logged
            return _train(job, run, callbacks, profile)


def begin_or_resume(
    recipe: Recipe,
    *,
    out: str | Path,
    execution: Execution | None = None,
    callbacks: Sequence[Callback] | None = None,
    catalog: Catalog | None = None,
    profile: int = 0,
) -> Result:
    """`resume` the run in `out` where it has a state, else `fit` into it: what may be started again at any time.

    A run has a state from the moment that its folder is there. Raises `ResiduumError`.
    """
    team = join((execution or Execution()).timeout)
    with team.together():
        going = team.of_first(lambda: Run(Path(out)).goes_on())
    if going:
        return resume(out, recipe=recipe, execution=execution, callbacks=callbacks, profile=profile)
    return fit(recipe, out=out, execution=execution, callbacks=callbacks, catalog=catalog, profile=profile)


def _as_written(recipe: Recipe, saved: Recipe) -> Recipe:
    """The recipe with what was found out when the run began, where it leaves that open as it was left then."""
    weights = recipe.finetune.weights
    if recipe.norm_batch is None:
        recipe = recipe.replace(norm_batch=saved.norm_batch)
    if recipe.precision == "auto":
        recipe = recipe.replace(precision=saved.precision)
    if weights is not None and whole_path(weights) == saved.finetune.weights:
        sha256 = recipe.finetune.sha256 or saved.finetune.sha256
        recipe = recipe.replace({"finetune.weights": saved.finetune.weights, "finetune.sha256": sha256})
    return recipe


def with_norm_batch(recipe: Recipe, world: int) -> Recipe:
    """The recipe with a chunk a process where it leaves chunks open; raises `ConfigError` where they are not alike."""
    if recipe.norm_batch is not None:
        return recipe
    share, rest = divmod(recipe.batch_size, world)
    if rest or share < 2:
        raise ConfigError(
            f"a batch of {recipe.batch_size} images cannot be shared by {world} processes alike; give a --batch-size "
            "that they divide, or --norm-batch, the images of a chunk, of which each process has some"
        )
    return recipe.replace(norm_batch=share)


def extension(saved: Recipe, recipe: Recipe, step: int, steps: int) -> str:
    """What it means that a run has more epochs from a step on, in a sentence."""
    before, after = (learning_rate(max(step - 1, 0), r, steps) for r in (saved, recipe))
    text = f"{saved.epochs} before, {recipe.epochs} now"
    if all(_alike_until(saved, recipe, step, steps)):
        return f"{text}; what was done is as it would have been"
    return (
        f"{text}; schedules go on as those of {recipe.epochs} epochs would, the learning rate from {before:.3g} to "
        f"{after:.3g}, and a run that had them from the start would have other weights"
    )


def _alike_until(saved: Recipe, recipe: Recipe, step: int, steps: int) -> Iterator[bool]:
    """Of each thing that depends on the length of a run, whether the steps taken so far had it as they would now."""
    yield all(learning_rate(i, saved, steps) == learning_rate(i, recipe, steps) for i in range(step))
    yield not (saved.average.window or saved.mixing.off or 0 < saved.finetune.thaw < 1)
    sizes = [[r.augment.size_in(epoch, r.epochs) for epoch in range(step // steps)] for r in (saved, recipe)]
    yield sizes[0] == sizes[1]


def _heard(callbacks: Sequence[Callback] | None, team: Team) -> Sequence[Callback]:
    """Who is told: of several processes the first one's alone."""
    if not team.first:
        return ()
    return (ConsoleLogger(),) if callbacks is None else callbacks


def _refuse_other_work(recipe: Recipe, execution: Execution, record: DataRecord, team: Team) -> None:
    """Raise `RunError` where a process has another recipe or other data than the first, or shares chunks otherwise."""
    theirs, shares, data = team.of_first(lambda: (recipe, execution.sync_norm, record))
    other = [name for name in differences(theirs, recipe) if name not in MAY_CHANGE]
    changed = f"{other[0]} is {quoted(recipe.to_dict()[other[0]])}" if other else data.changed(record)
    if changed is None and shares != execution.sync_norm:
        changed = f"sync_norm is {execution.sync_norm}"
    if changed is not None:
        raise RunError(
            f"process {team.rank} of {team.world} has other work than the first: {changed}; start all of them alike"
        )
    team.exchange()


def _refuse_changes(saved: Recipe, recipe: Recipe) -> None:
    """Raise `RunError` where a recipe differs from that of the run in what decides its outcome, but in more epochs."""
    changes = {name: pair for name, pair in differences(saved, recipe).items() if name not in MAY_CHANGE}
    if recipe.epochs > saved.epochs:
        changes.pop("epochs")
    if changes:
        words = [f"{name} is {quoted(old)} there and {quoted(new)} here" for name, (old, new) in changes.items()]
        more = f", and {len(words) - 3} more" if len(words) > 3 else ""
        raise RunError(f"a run goes on with its own recipe: {', '.join(words[:3])}{more}; leave that out")


def precision_for(recipe: Recipe, catalog: Catalog, device: torch.device) -> tuple[str, str]:
    """What `choose_precision` says of a recipe, but for networks that a CPU's kernels train wrongly in bf16.

    The gradient of a 3x3 kernel with a stride, of a map of one pixel, is memory that nobody wrote (oneDNN 3.12, on
    processors with AVX-512 for bf16). Raises `ConfigError` where bf16 is asked for and a stage begins with such a one.
    """
    precision, why = choose_precision(recipe.precision, device)
    size = recipe.data.image_size or catalog.image_size
    if precision != "bf16" or device.type != "cpu" or size is None or not _halves_one_pixel(recipe.model, size):
        return precision, why
    why = "a stage of this network halves maps of one pixel, whose gradients CPUs compute wrongly in bf16"
    if recipe.precision == "auto":
        return "fp32", why
    raise ConfigError(f"precision is bf16, but {why}; take fp32, or larger images")


def _halves_one_pixel(config: ResNetConfig, size: tuple[int, int]) -> bool:
    """Whether a stage with a stride is given maps of 1x1 pixels."""
    with torch.device("meta"):
        network = ResNet(config).eval()
        levels = range(len(network.feature_info))
        maps = network.features(torch.zeros(1, config.in_channels, *size), levels)
    sides = [tuple(each.shape[2:]) for each in maps]
    pairs = itertools.pairwise(zip(sides, network.feature_info, strict=True))
    return any(before == (1, 1) and last.stride < info.stride for (before, last), (_, info) in pairs)


def _precision_here(recipe: Recipe, device: torch.device) -> str:
    """How the run's precision sits with this device, in words; raises `DeviceError` where it cannot be had."""
    precision, _ = choose_precision(recipe.precision, device)
    usual, why = choose_precision("auto", device)
    return "as before" if precision == usual else f"as before, though {usual} would be chosen here: {why}"


def _say(callbacks: Sequence[Callback], topic: str, text: str) -> None:
    for callback in callbacks:
        callback.say(topic, text)


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the caller's random numbers go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# -- what a run consists of --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run's parts on the device, ready for the loop."""

    recipe: Recipe
    execution: Execution
    dataset: Dataset
    state: State
    train: Loader
    val: Loader | None
    plan: Plan | None
    begun_from: str | None  # what was taken from weights, in a sentence
    team: Team = ALONE

    def loader(self, split: Split) -> Loader:
        """All images of a split in order, for evaluation; of several processes each has its part."""
        return loader_for(self.recipe, self.execution, self.dataset, split, self.state.device, self.team, train=False)

    @property
    def net(self) -> Callable[[Tensor], Tensor]:
        """The network as a step calls it."""
        network = compiled(self.state.network) if self.recipe.compile else self.state.network
        return Replica(network) if self.team.world > 1 else network


def prepare(
    recipe: Recipe,
    execution: Execution,
    catalog: Catalog,
    device: torch.device,
    callbacks: Sequence[Callback],
    weights: Checkpoint | None = None,
    team: Team = ALONE,
) -> Job:
    """Read the data and build the network, as `recipe`, whose precision is chosen, and `execution` say.

    `weights` are those to start from; a run that goes on has them in its state.
    """
    set_up(device)
    if recipe.compile:
        need_compiler(device)
        if execution.memory is not None:
            raise ConfigError("a compiled step plans its own recomputation; leave out --memory or --compile")
        if _shares(execution, team):
            raise ConfigError(
                "a compiled step takes statistics and draws of its own images alone; leave out --sync-norm or --compile"
            )
    _say(callbacks, "reading", f"{recipe.data.path}, {counted(len(catalog.classes), 'class')}")
    for reason, count in catalog.left_out.items():
        _say(callbacks, "left out", f"{reason} ({count:,})")
    with team.in_turn():  # which downloads what is not there
        dataset = open_dataset(
            catalog,
            recipe.data,
            channels=recipe.model.in_channels,
            cache=execution.cache_folder,
            say=lambda text: _say(callbacks, "reading", text),
        )
    torch.manual_seed(recipe.seed)
    network = make_network(recipe.model, device, recipe.precision)
    set_norm_momentum(network, recipe.optimizer.norm_momentum)
    begun_from = None if weights is None else take_weights(network, weights, dataset.classes, recipe.finetune.head)
    network.classes, network.preprocessing = dataset.classes, dataset.preprocessing
    network.several_classes = catalog.several
    make = partial(loader_for, recipe, execution, dataset, device=device, team=team)
    train = make(dataset.train, train=True)
    val = make(dataset.val, train=False) if dataset.val is not None else None
    cut = Cut.of(train.schedule)
    plan = _plan(network, cut, recipe, execution, device, team) if execution.memory is not None else None
    if _shares(execution, team):
        share_chunks(network)
    freeze_for(network, recipe)  # after the plan, which is for the steps that train all
    average = make_average(network, recipe.average, recipe.epochs * len(train))
    state = State(network, make_optimizer(network, recipe.optimizer), average)
    state.class_weights = weights_of_classes(recipe, dataset.train.labels, device)
    state.progress.begin_epoch(len(train), device)
    return Job(recipe, execution, dataset, state, train, val, plan, begun_from, team)


def _shares(execution: Execution, team: Team) -> bool:
    """Whether several processes have a part of each chunk."""
    return execution.sync_norm and team.world > 1


def weights_of_classes(recipe: Recipe, labels: Tensor, device: torch.device) -> Tensor | None:
    """Weights of classes in the loss (classes,), by their numbers among the training labels; None for all alike."""
    if recipe.data.balance != "loss":
        return None
    return class_weights(labels, recipe.model.num_classes, recipe.data.balance_power).to(device)


def make_network(config: ResNetConfig, device: torch.device, precision: str) -> ResNet:
    """A new network as it trains fastest on a device, in training mode; its weights are of torch's generator."""
    network = ResNet(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    choose_in_place(network, device, DTYPES[precision])
    return network.train()  # type: ignore[no-any-return]


def loader_for(
    recipe: Recipe,
    execution: Execution,
    dataset: Dataset,
    split: Split,
    device: torch.device,
    team: Team = ALONE,
    *,
    train: bool,
) -> Loader:
    """Batches of one split as the recipe and its execution want them."""
    return make_loader(
        split,
        dataset.preprocessing,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        train=train,
        augmentation=recipe.augment,
        device=device,
        workers=execution.workers,
        skip_bad_images=recipe.data.skip_bad_images,
        balance=recipe.data.balance_power if recipe.data.balance == "sampler" else 0.0,
        epochs=recipe.epochs,
        norm_batch=recipe.norm_batch if train else None,
        shared=train and _shares(execution, team),
        rank=team.rank,
        world=team.world,
    )


def _plan(network: ResNet, cut: Cut, recipe: Recipe, execution: Execution, device: torch.device, team: Team) -> Plan:
    """Recompute what it takes to stay within the budget, of which this process holds a part already.

    Several processes take one plan, that of the first for the least budget: those that share chunks meet in each norm.
    """
    assert execution.memory is not None
    assert network.preprocessing is not None
    budget = free_memory(device) if execution.memory == "auto" else parse_size(execution.memory)
    if execution.memory == "auto" and device.type == "cpu":
        budget //= team.local_world
    batch = team.largest(max(cut.sizes))
    own = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    held = team.largest(max(held_memory(device) - own, 0)) + beside_a_step(network, recipe, cut)
    budget = -team.largest(-budget)
    planner = Planner(
        network,
        image_size=recipe.augment.largest_size or network.preprocessing.image_size,
        dtype=torch.bfloat16 if recipe.precision == "bf16" else None,
        optimizer=state_kept(recipe.optimizer),
        device=device,
    )
    least = planner.least(batch)
    if least > budget - held:
        raise ConfigError(
            f"a batch of {batch} does not fit {_said(execution.memory, budget)}: {show_size(held)} are taken before "
            f"the first step, and recomputing the most takes {show_size(least)} more; "
            f"give {show_size(least + held, enough=True)} or a smaller --batch-size"
        )
    plan = team.of_first(lambda: planner.plan(batch, budget - held))
    plan.apply(network)
    return plan


def beside_a_step(network: ResNet, recipe: Recipe, cut: Cut) -> int:
    """Bytes beyond those of a plan: the average of parameters and buffers, and gradients of other chunks."""
    gradients = sum(p.nbytes for p in network.parameters())
    average = gradients + sum(b.nbytes for b in network.buffers()) if recipe.average.window else 0
    return average + gradients * cut.held


def memory_in_words(peak: int, images: int, plan: Plan | None, budget: str | None) -> str:
    """What a step's tensors take, with how many images, and where there is a budget what is recomputed for it."""
    step = f"for a step's tensors, with {counted(images, 'image')} at once"
    if plan is None or budget is None:
        return f"{show_size(peak)} {step}"
    within = f"{show_size(peak)} of {'what is free' if budget == 'auto' else show_budget(budget)} {step}"
    if not plan.recomputes:
        return f"{within}; nothing is recomputed"
    parts = ", ".join(f"{part} {modes}" for part, modes in plan.in_words())
    return f"{within}; recomputed: {parts}; a step takes {plan.slowdown:.2f} times as long (predicted)"


def _said(asked: str, budget: int) -> str:
    return show_size(budget) if asked == "auto" else show_budget(asked)


def _listeners(job: Job, run: Run, callbacks: Sequence[Callback]) -> Sequence[Callback]:
    """The callbacks, and those that the execution asks for."""
    workers = None if isinstance(job.train, MemoryLoader) else job.execution.workers
    trackers = open_trackers(job.execution, run.path, job.recipe, callbacks)
    return (*callbacks, WaitingForData(callbacks, workers), *trackers)


def facts(job: Job, why: str) -> dict[str, str]:
    """What will be trained on what, and how: topic to sentence. `why` is the reason for the recipe's precision."""
    recipe, dataset, state = job.recipe, job.dataset, job.state
    height, width = dataset.preprocessing.image_size
    splits = [("train", dataset.train), ("val", dataset.val), ("test", dataset.test)]
    counts = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits if split is not None)
    lines = {
        "data": f"{recipe.data.path}: {counts} images, {counted(len(dataset.classes), 'class')}, {height}x{width}",
        "network": f"depth {recipe.model.depth}, {sum(p.numel() for p in state.network.parameters()):,} parameters",
        "computing": f"{state.device}, {recipe.precision} ({why})",
    }
    if dataset.val is None:
        why_none = ", since each class keeps one to train with" if recipe.data.holdout else ""
        lines["validation"] = f"no image is held out{why_none}: no val accuracy, and no {BEST}"
    if recipe.data.balance != "none":
        sizes = dataset.train.labels.bincount().tolist()
        by = f"evened out by the {recipe.data.balance} with a power of {recipe.data.balance_power:g}"
        lines["balance"] = f"{min(sizes):,} to {max(sizes):,} train images a class, {by}"
    if job.begun_from is not None:
        lines["weights"] = job.begun_from
    if recipe.finetune.freeze:
        lines["frozen"] = frozen_parts(state.network, recipe)
    if different := rates(state.network, state.optimizer, recipe):
        lines["rates"] = different
    if job.plan is not None:
        cut = Cut.of(job.train.schedule)
        peak = job.plan.peak + beside_a_step(state.network, recipe, cut)
        lines["memory"] = memory_in_words(peak, max(cut.sizes), job.plan, job.execution.memory)
    if (chunks := job.train.schedule.chunks) > 1 or job.team.world > 1:
        processes = counted(job.team.world, "process")
        how = "shared by" if _shares(job.execution, job.team) else "in"
        lines["chunks"] = f"{chunks} a step, of {recipe.batch_size // chunks} images each, {how} {processes}"
    if job.train.left_out_per_epoch:
        lines["batches"] = full_batches(len(dataset.train.labels), recipe.batch_size, job.train.left_out_per_epoch)
    return lines


def _begin(job: Job, run: Run, why: str, callbacks: Sequence[Callback]) -> None:
    """Tell the callbacks what will be trained on what, and how."""
    recipe, dataset, progress = job.recipe, job.dataset, job.state.progress
    lines = facts(job, why) | {"run": str(run.path)}
    if progress.epoch or progress.step:
        within = f"step {progress.step} of {len(job.train)} in epoch {progress.epoch + 1}"
        lines["resumed"] = f"after {within if progress.step else f'epoch {progress.epoch}'} of {recipe.epochs}"
    for callback in callbacks:
        for image in itertools.chain(*dataset.skipped.values()):
            callback.say("left out", image)
        callback.begin(Beginning(recipe.epochs, len(job.train), progress.epoch, progress.step, lines))


def full_batches(images: int, batch_size: int, left_out: int) -> str:
    """A sentence about the images that full batches leave out of each epoch, and what would leave out fewer."""
    near = range(max(2, batch_size * 3 // 4), min(images, batch_size * 5 // 4) + 1)
    better = min(near, key=lambda size: (images % size, abs(size - batch_size)), default=batch_size)
    share = f"{left_out:,} of {images:,} train images ({left_out / images:.0%})"
    text = f"{share} are left out of each epoch, others each time"
    return f"{text}; --batch-size {better} leaves out {images % better:,}" if images % better < left_out else text


# -- training and its end ----------------------------------------------------------------------------------------------


def _train(job: Job, run: Run, callbacks: Sequence[Callback], profile: int) -> Result:
    """Train to the end or to a signal, look at the test split once, draw the curves."""
    stop, progress, recipe, team = Stop(), job.state.progress, job.recipe, job.team
    profiling = Profile(profile if team.first else 0, len(job.train), job.state.device, run.path, callbacks)
    try:
        with stop.listening():
            train_epochs(
                job.state,
                job.net,
                recipe,
                job.train,
                job.val,
                callbacks=callbacks,
                save=partial(_save, job, run, callbacks),
                save_every=job.execution.save_every,
                stopped=lambda: stop.signal is not None,
                watched=profiling.watched,
                team=team,
            )
            stopped_by = team.largest(stop.signal or 0) or None
            skipped = job.train.skipped | (job.val.skipped if job.val is not None else set())
            if progress.epoch == recipe.epochs and stopped_by is None and _owes_test(job):
                assert job.dataset.test is not None
                loader, clock = job.loader(job.dataset.test), Clock(job.state.device, progress.spent)
                found = look_at(job.state.result, loader, "test", recipe, callbacks, team)
                clock.lap("evaluate")
                clock.read()
                progress.history[-1] |= {"test_loss": found.loss, "test_accuracy": found.accuracy}
                skipped |= loader.skipped
                _save(job, run, callbacks)
    except DataError:
        if progress.epoch or progress.step:
            place = f"epoch {progress.epoch + 1}, step {progress.step}"
            _say(
                callbacks, "saved", f"up to {place}; go on with:  residuum train --resume {run.path} --skip-bad-images"
            )
        raise
    finally:
        for callback in callbacks:
            callback.end()
    if team.first:
        run.draw_curves(progress.history)
    best = best_epoch(progress.history)
    if best is not None:
        accuracy = progress.history[best - 1]["val_accuracy"]
        _say(callbacks, "best", f"val accuracy {100 * accuracy:.2f} % after epoch {best}, weights in {run.best}")
    if stopped_by is None and (text := _no_better(job)):
        _say(callbacks, "no better", text)
    _say(callbacks, "time", in_words(of_rows(progress.history), progress.spent))
    for image in sorted(skipped):
        _say(callbacks, "left out", image)
    team.exchange()  # the first process may have failed at the last file
    complete = progress.epoch == recipe.epochs and not _owes_test(job)
    return Result(run.path, tuple(progress.history), progress.seconds, None if complete else stopped_by)


def _no_better(job: Job) -> str | None:
    """That the network is no more often right than one answer for all images would be, if so; a run may fail so."""
    row, splits = job.state.progress.history[-1], (("val", job.dataset.val), ("test", job.dataset.test))
    for name, split in splits:
        accuracy = row.get(f"{name}_accuracy")
        if accuracy is None or split is None or split.labels.ndim > 1:
            continue
        counts = split.labels.bincount()
        share = int(counts.max()) / len(split.labels)
        if accuracy > share:
            return None
        usual = quoted(job.dataset.classes[int(counts.argmax())])
        return f"than always answering {usual}, which is right for {100 * share:.2f} % of the {name} images"
    return None


def _owes_test(job: Job) -> bool:
    """Whether the test split is still to be looked at when all epochs are done."""
    return job.execution.test and job.dataset.test is not None and "test_loss" not in job.state.progress.history[-1]


def _create(out: str | Path | None, data: str, job: Job, record: DataRecord) -> Run:
    """The folder of a run that begins, with its first state: `out`, or the next free one of the data's name."""

    def fill(run: Run) -> None:
        environment.note(run.path, environment.here(job.state.device), 0)
        _save(job, run, ())

    while True:
        path = Path(out) if out is not None else free_folder(Path("runs"), data)
        try:
            return Run.create(path, job.recipe, job.execution, record, fill)
        except RunError:
            if out is not None or not path.exists():
                raise  # and else another run that began just now has taken it


def _save(job: Job, run: Run, callbacks: Sequence[Callback]) -> None:
    """The state last: a run whose state says an epoch is done has that epoch's weights and metrics on disk."""
    if not job.team.first:
        return
    state, dataset = job.state, job.dataset
    # Without the check of `residuum.save` that a network is what its config says: it was made of it above.
    tensors = state.result.state_dict()
    bad = not_finite(tensors)  # of a last step whose loss was still a number
    if bad:
        raise DivergedError(
            f"the weights hold NaN or infinity in {some(bad)} after epoch {state.progress.epoch}, step "
            f"{state.progress.step}; the run keeps its last good state. Try a lower learning rate than "
            f"{job.recipe.optimizer.lr:g}"
        )
    extra = {"several_classes": True} if state.network.several_classes else {}
    write_ours(tensors, job.recipe.model, run.weights, dataset.classes, dataset.preprocessing, extra)
    if state.progress.step == 0 and best_epoch(state.progress.history) == state.progress.epoch:
        write_ours(tensors, job.recipe.model, run.best, dataset.classes, dataset.preprocessing, extra)
    if state.progress.history:
        run.save_metrics(state.progress.history)
    run.save_state(state.to_dict())
    _tell_saved(job, callbacks)


def best_epoch(history: Sequence[dict[str, Any]]) -> int | None:
    """The first epoch, from 1, with the highest accuracy on the validation split; None without one."""
    looked = [row for row in history if "val_accuracy" in row]
    return max(looked, key=lambda row: (row["val_accuracy"], -row["epoch"]))["epoch"] if looked else None


def _tell_saved(job: Job, callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        callback.saved(job.state.progress.history)
