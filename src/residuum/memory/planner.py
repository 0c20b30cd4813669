"""The planner: a recomputation mode for every block, so that a training step fits a memory budget at the least time.

A step's bytes at any moment are those there all the time, those that the parts before have kept, and those that the
part at work needs. So the choice is a knapsack in which each part also has to fit when its turn comes; it is solved
exactly, by going through the parts and holding on to every pair of bytes kept and time spent that no other beats.

What fits as it is stays as it is. Else more recomputation has to save more time than a clock is sure of.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from residuum.devices import pick_device, timed_in
from residuum.errors import ConfigError
from residuum.memory.checkpointing import MODES, check_ours, recompute
from residuum.memory.footprint import Affine, Footprint, StepPart, at, check_images, step_cost
from residuum.memory.timing import Times, measure_times
from residuum.nn.resnet import ResNet
from residuum.units import parse_size, show_budget, show_size
from residuum.validation import LARGEST

# What an optimizer keeps for each trained parameter, in copies of it.
OPTIMIZERS = {"none": 0, "sgd": 1, "adamw": 2}
Modes = tuple[str | tuple[str, ...], ...]

# The share of a part's time that each further mode, in the order of `MODES`, has to save over the one before it to be
# chosen: what runs of the same code differ by, where they are timed, and what sums of floats differ by, where not.
_NOISE, _ROUNDING = 1e-2, 1e-9


@dataclass(frozen=True)
class Speed:
    """A machine that is not at hand, by what it does in a second: floating-point operations of convolutions, bytes
    read and written.
    """

    # floating-point operations of convolutions in a second
    flops: float
    # bytes read and written in a second
    bytes: float

    def times(self, parts: Sequence[StepPart]) -> list[Times]:
        """Of each part, were these all that counts."""

        def line(footprint: Footprint) -> Affine:
            work, moved = footprint.flops, footprint.moved
            return work[0] / self.flops + moved[0] / self.bytes, work[1] / self.flops + moved[1] / self.bytes

        return [{"first": line(p.alone), **{mode: line(found) for mode, found in p.modes.items()}} for p in parts]


_AT_ONCE = Speed(math.inf, math.inf)


@dataclass(frozen=True)
class Option:
    """A part, or a whole stage, in one mode: bytes it keeps, bytes it needs at most while it works, seconds.

    `margin` is the seconds that it has to save over `none` to be chosen in its place.
    """

    mode: str
    kept: int
    need: int
    seconds: float
    margin: float


@dataclass(frozen=True)
class Steps:
    """What a plan chooses from: the options of stem, of each block by stage, of each stage as a whole, of the head."""

    stem: tuple[Option, ...]
    stages: tuple[tuple[tuple[Option, ...], ...], ...]
    whole: tuple[Option | None, ...]
    head: Option
    fixed: int


@dataclass(frozen=True)
class Plan:
    """Modes for a network, and what they are predicted to take: peak bytes, step time over that without recomputation.

    The peak counts parameters, buffers, gradients, optimizer state, images and activations: the tensors of a step.
    """

    # number of images of the step
    batch_size: int
    # mode of the stem
    stem: str
    # mode of each block, stage by stage
    modes: Modes
    # bytes
    peak: int
    # step time over that without recomputation
    slowdown: float
    share: float  # of the bytes that come and go in a step without recomputation: gradients and activations

    @property
    def recomputes(self) -> bool:
        """Whether anything is recomputed."""
        return self.stem != "none" or any(mode != "none" for stage in self.modes for mode in _each(stage))

    def in_words(self) -> list[tuple[str, str]]:
        """Each part and its modes: ("layer3", "block x 4, none x 2")."""
        rows = [("stem", self.stem)]
        for number, modes in enumerate(self.modes, 1):
            runs = [(mode, len(list(same))) for mode, same in groupby(_each(modes))]
            words = ", ".join(f"{mode} x {count}" if count > 1 else mode for mode, count in runs)
            rows.append((f"layer{number}", words))
        return rows

    def apply(self, model: ResNet) -> ResNet:
        """Set the modes on a network, in place."""
        return recompute(model, self.modes, stem=self.stem != "none")

    def compile(self, model: ResNet, **options: Any) -> Callable[..., Any]:
        """`torch.compile(model, **options)`, with the compiler's partitioner set to this plan's share, and a warning.

        Compiled code does not follow the modes. The setting is torch's global `activation_memory_budget`.
        """
        import torch._functorch.config as partitioner

        warnings.warn(
            "compiled, modes stand back: torch's partitioner recomputes in their place, with activation_memory_budget "
            f"set to {self.share:.3f}",
            stacklevel=2,
        )
        partitioner.activation_memory_budget = self.share
        compiled: Callable[..., Any] = torch.compile(model, **options)
        return compiled


class Planner:
    """A network's training step, run once on the meta device; plans for any batch size and budget follow from it.

    `dtype` is autocast's, `optimizer` one of `OPTIMIZERS`. Its parts are timed on `device` for some seconds, in fp32
    where that computes no bf16, unless the `speed` of a machine that is not at hand is given.
    """

    def __init__(
        self,
        model: ResNet,
        *,
        image_size: tuple[int, int] = (224, 224),
        dtype: torch.dtype | None = None,
        optimizer: str = "sgd",
        device: torch.device | str = "cpu",
        speed: Speed | None = None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}")
        self.cost = step_cost(model, image_size, dtype)
        self._config, self._image_size = model.config, image_size
        self.depths = [len(stage) for stage in model.stages]
        self._plain: Modes = tuple(("none",) * depth for depth in self.depths)
        self.static = self.cost.fixed + OPTIMIZERS[optimizer] * self.cost.trained
        where = pick_device(device) if isinstance(device, str) else device
        self._measure = partial(measure_times, model, self.cost.parts, image_size, dtype, where)
        self.timed_in_fp32 = speed is None and timed_in(dtype, where) != dtype
        self._speed, self._doubt = speed, _NOISE if speed is None else _ROUNDING

    @cached_property
    def times(self) -> list[Times]:
        """Seconds of each part. Measured when first asked for: what fits does not depend on it."""
        return self._measure() if self._speed is None else self._speed.times(self.cost.parts)

    def steps(self, batch_size: int, *, timed: bool = True) -> Steps:
        """The options for a batch; where they are not `timed` each takes no time."""
        check_images(self._config, self._image_size, batch_size)
        parts = self.cost.parts
        every = self.times if timed else _AT_ONCE.times(parts)
        after = np.cumsum([0, *(p.gradients for p in reversed(parts))])[::-1][1:]
        options = [
            tuple(self._option(part, mode, times, batch_size, int(later)) for mode in part.modes)
            for part, times, later in zip(parts, every, after, strict=True)
        ]
        stages, whole, place = [], [], 1
        for depth in self.depths:
            stages.append(tuple(options[place : place + depth]))
            inside = slice(place, place + depth)
            whole.append(self._whole(parts[inside], every[inside], batch_size, int(after[place + depth - 1])))
            place += depth
        fixed = self.static + round(at(self.cost.held, batch_size))
        return Steps(options[0], tuple(stages), tuple(whole), options[-1][0], fixed)

    def _option(self, part: StepPart, mode: str, times: Times, batch_size: int, later: int) -> Option:
        found = part.modes[mode]
        need = max(_top(found.forward, batch_size), _top(found.backward, batch_size) + later)
        seconds, margin = _seconds(times, mode, batch_size), self._margin(times, mode, batch_size)
        return Option(mode, round(at(found.kept, batch_size)), need, seconds, margin)

    def _margin(self, times: Times, mode: str, batch_size: int) -> float:
        return self._doubt * MODES.index(mode) * at(times["none"], batch_size)

    def _whole(self, parts: Sequence[StepPart], times: Sequence[Times], batch_size: int, later: int) -> Option | None:
        """A stage that keeps its input alone: first run without keeping, then again with its blocks in mode `block`."""
        if any("block" not in part.modes for part in parts):
            return None
        output = parts[-1].output(batch_size)
        statistics = sum(round(at(part.alone.kept, batch_size)) - part.output(batch_size) for part in parts)
        before, need, seconds = 0, 0, 0.0
        coming = sum(part.gradients for part in parts) + later
        for part, mine in zip(parts, times, strict=True):
            inner = part.modes["block"]
            coming -= part.gradients
            again = before + max(
                _top(inner.forward, batch_size) + output + later, _top(inner.backward, batch_size) + coming
            )
            need = max(need, again, _top(part.alone.forward, batch_size) + part.output(batch_size))
            before += round(at(inner.kept, batch_size))
            seconds += _seconds(mine, "block", batch_size) + at(mine["first"], batch_size)
        margin = sum(self._margin(mine, "stage", batch_size) for mine in times)
        return Option("stage", output + statistics, need + statistics, seconds, margin)

    def plan(self, batch_size: int, budget: str | int) -> Plan:
        """The choice for a budget in bytes, or such as "8GB"; raises `ConfigError` where none is within it.

        Where the network fits as it is, nothing is recomputed, and nothing timed. Else it is the fastest choice whose
        predicted peak is within the budget, with less recomputation where times differ by no more than they are
        sure of.
        """
        room = parse_size(budget)
        plain = self.uniform(batch_size, "none")
        if plain.peak <= room:
            return plain
        least = self.least(batch_size)
        if least > room:
            raise ConfigError(
                f"a batch of {batch_size} does not fit {show_budget(budget)}: recomputing the most takes "
                f"{show_size(least, enough=True)}; give that, or a smaller batch"
            )
        steps = self.steps(batch_size)
        return self.describe(batch_size, *_solve(steps, room - steps.fixed))

    def describe(self, batch_size: int, stem: str, modes: Modes) -> Plan:
        """The plan that these modes are; nothing is timed for the network as it is."""
        plain = (stem, modes) == ("none", self._plain)
        steps = self.steps(batch_size, timed=not plain)
        peak, seconds = evaluate(steps, stem, modes)
        most, least_seconds = evaluate(steps, "none", self._plain)
        share = (peak - steps.fixed) / (most - steps.fixed)
        return Plan(batch_size, stem, modes, peak, 1.0 if plain else seconds / least_seconds, share)

    def uniform(self, batch_size: int, mode: str) -> Plan:
        """The plan that `recompute(model, mode)` is."""
        stem = "none" if mode == "none" or len(self.cost.parts[0].modes) == 1 else "block"
        return self.describe(batch_size, stem, tuple("stage" if mode == "stage" else (mode,) * d for d in self.depths))

    def least(self, batch_size: int) -> int:
        """Bytes of the least budget that can be met."""
        steps = self.steps(batch_size, timed=False)
        low, high = 0, evaluate(steps, "none", self._plain)[0] - steps.fixed
        while low < high:
            middle = (low + high) // 2
            if _fits(steps, middle):
                high = middle
            else:
                low = middle + 1
        return low + steps.fixed

    def largest_batch(self, budget: str | int) -> int:
        """The largest batch that can be trained within a budget in bytes, or such as "8GB"; 0 where none can."""
        room = parse_size(budget)
        low, high = 0, 1
        while high <= LARGEST and self.least(high) <= room:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.least(middle) <= room else (low, middle)
        return low

    def frontier(self, batch_size: int, points: int = 10) -> list[Plan]:
        """Plans from the leanest to the plainest, each the fastest for its memory."""
        least, most = self.least(batch_size), self.uniform(batch_size, "none").peak
        plans: list[Plan] = []
        for budget in np.linspace(least, most, points):
            found = self.plan(batch_size, int(np.ceil(budget)))
            if not plans or found.slowdown < plans[-1].slowdown:
                plans.append(found)
        return plans


def plan(
    model: ResNet,
    batch_size: int,
    budget: str | int,
    *,
    image_size: tuple[int, int] = (224, 224),
    dtype: torch.dtype | None = None,
    optimizer: str = "sgd",
    device: torch.device | str = "cpu",
    speed: Speed | None = None,
) -> Plan:
    """The fastest modes for training `model` on batches of images of `image_size` within a budget such as "8GB".

    Where the network fits as it is, nothing is recomputed. `image_size` is height and width in pixels, `dtype` is
    autocast's, fp32 where it is None, `device` the one that is timed. The budget is for
    the tensors of a step: see `Plan`. Whether activations write in place is left as the model has it (see
    `choose_in_place`). Raises `ConfigError` for a budget that is no size or too small, which says the least that would
    do, for a batch size or image size that cannot be, and for a model that is not ours.
    """
    parse_size(budget)  # before the work
    check_ours(model)
    check_images(model.config, image_size, batch_size)
    planner = Planner(model, image_size=image_size, dtype=dtype, optimizer=optimizer, device=device, speed=speed)
    return planner.plan(batch_size, budget)


def _each(modes: str | tuple[str, ...]) -> tuple[str, ...]:
    return (modes,) if isinstance(modes, str) else modes


def _seconds(times: Times, mode: str, batch_size: int) -> float:
    """Of both passes. Nothing is faster than recomputing nothing, whatever the clock said."""
    return max(at(times[mode], batch_size), at(times["none"], batch_size))


def _top(lines: tuple[Affine, ...], batch_size: int) -> int:
    return round(max((at(line, batch_size) for line in lines), default=0))


def options_of(steps: Steps, stem: str, modes: Modes) -> list[Option]:
    """The options that a choice takes, from stem to head."""

    def named(options: tuple[Option, ...], mode: str) -> Option:
        # A part that gets no gradient is the same in all modes.
        return next((o for o in options if o.mode == mode), options[0])

    chosen = [named(steps.stem, stem)]
    for blocks, whole, mode in zip(steps.stages, steps.whole, modes, strict=True):
        if mode == "stage" and whole is not None:
            chosen.append(whole)
        else:
            names = ["none"] * len(blocks) if isinstance(mode, str) else mode
            chosen += [named(options, name) for options, name in zip(blocks, names, strict=True)]
    return [*chosen, steps.head]


def evaluate(steps: Steps, stem: str, modes: Modes) -> tuple[int, float]:
    """Predicted peak bytes and seconds of a choice."""
    chosen = options_of(steps, stem, modes)
    before = peak = 0
    for option in chosen:
        peak = max(peak, before + option.need)
        before += option.kept
    return peak + steps.fixed, sum(option.seconds for option in chosen)


def _fits(steps: Steps, room: int) -> bool:
    """Whether any choice needs no more than `room`: the one that keeps least, part by part."""

    def through(before: int | None, options: Sequence[Option]) -> int | None:
        if before is None:
            return None
        return min((before + o.kept for o in options if before + o.need <= room), default=None)

    kept = through(0, steps.stem)
    for blocks, whole in zip(steps.stages, steps.whole, strict=True):
        inside = kept
        for options in blocks:
            inside = through(inside, options)
        found = [k for k in (inside, through(kept, [whole] if whole else [])) if k is not None]
        kept = min(found, default=None)
    return through(kept, [steps.head]) is not None


class _Front:
    """Choices so far that no other beats: bytes kept, cost, and for each the number of its last decision.

    The cost is seconds and margins together, so that more recomputation never wins by a tie.
    """

    def __init__(self, kept: np.ndarray, cost: np.ndarray, last: np.ndarray) -> None:
        order = np.lexsort((cost, kept))
        least = np.minimum.accumulate(cost[order])
        better = np.append(True, least[1:] < least[:-1]) if len(order) else order.astype(bool)
        chosen = order[better]
        self.kept, self.cost, self.last = kept[chosen], cost[chosen], last[chosen]


def _solve(steps: Steps, room: int) -> tuple[str, Modes]:
    """Modes of stem and stages with the least cost that need no more than `room`, which some do."""
    parents: list[np.ndarray] = [np.array([-1])]
    labels: list[str] = [""]  # of each step's decisions
    owner: list[np.ndarray] = [np.array([0])]
    count = 1

    def through(front: _Front, options: Sequence[Option]) -> _Front:
        nonlocal count
        kept, cost, last = [], [], []
        for option in options:
            fits = front.kept + option.need <= room
            kept.append(front.kept[fits] + option.kept)
            cost.append(front.cost[fits] + (option.seconds + option.margin))
            parents.append(front.last[fits])
            labels.append(option.mode)
            owner.append(np.full(int(fits.sum()), len(labels) - 1))
            last.append(np.arange(count, count + int(fits.sum())))
            count += int(fits.sum())
        empty = np.zeros(0, dtype=np.int64)
        return _Front(np.concatenate([empty, *kept]), np.concatenate([empty, *cost]), np.concatenate([empty, *last]))

    front = through(_Front(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64)), steps.stem)
    for blocks, whole in zip(steps.stages, steps.whole, strict=True):
        start = front
        for options in blocks:
            front = through(front, options)
        if whole is not None:
            other = through(start, [whole])
            front = _Front(*(np.concatenate([getattr(front, n), getattr(other, n)]) for n in ("kept", "cost", "last")))
    front = through(front, [steps.head])
    parent, label = np.concatenate(parents), np.concatenate(owner)
    at_node, chosen = int(parent[front.last[int(front.cost.argmin())]]), []
    while at_node > 0:
        chosen.append(labels[int(label[at_node])])
        at_node = int(parent[at_node])
    stem, *rest = reversed(chosen)
    modes: list[str | tuple[str, ...]] = []
    for blocks in steps.stages:
        if rest[0] == "stage":
            modes.append(rest.pop(0))
        else:
            modes.append(tuple(rest[: len(blocks)]))
            del rest[: len(blocks)]
    return stem, tuple(modes)
