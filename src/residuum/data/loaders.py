"""From a split to batches on the device. Every batch is a function of seed, epoch and step alone.

So a run that stops in the middle of an epoch goes on with the very same batches, nothing about the data has to be
saved, and neither workers nor the number of processes change which images a step sees or how they vary. Small images
live on the device as uint8 and are augmented a batch at a time. Workers read files, and augment these and what else is
to be augmented an image at a time.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from residuum.data.augmentation import (
    Draws,
    MemoryTransform,
    TrainingTransform,
    draw,
    mirrored_first,
    seed_for,
)
from residuum.data.balance import balanced_order, one_class_each, weighted_order
from residuum.data.preparing import EvaluationTransform, Normalise
from residuum.data.reading import Desk, leave_interrupts_to_the_main_process
from residuum.data.settings import Augmentation
from residuum.data.sources import Split
from residuum.errors import ConfigError, DataError
from residuum.preprocessing import Preprocessing
from residuum.units import counted

_REPLACEMENTS = 16  # images that are tried in place of one that cannot be decoded


class Loader(Protocol):
    """Batches of float (N, C, H, W), channels-last, and labels, a row each as the split has them, on the device.

    `schedule` is the order in which they come, and how a step's images are shared by processes and cut into chunks.
    `skipped` says of each file that was left out why; `left_out_per_epoch` is how many images of the split, others each
    time, full batches leave out of an epoch.
    """

    schedule: "Schedule"
    skipped: set[str]
    left_out_per_epoch: int

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch `start` on."""
        ...


@dataclass(frozen=True)
class Schedule:
    """Which images make up which batch of one process out of `world`.

    For training they are shuffled, and each batch of `batch_size` images is cut into chunks of `norm_batch`; process
    `rank` has the rank-th of `world` contiguous runs of whole chunks, of which the first ones may be longer; or, where
    chunks are `shared`, the rank-th of `world` parts of each. Without `norm_batch` each process has one chunk, as
    nearly as large as the others'. For evaluation it has images `rank`, `rank + world`, ... in order, to the last one.

    With `repeats` an epoch has so many views of fewer images, which stand in one batch where they do not fall on its
    edge: the first views of all, then the second ones, so that processes have views of one image each. Numbers from
    `count` on are further views of the images number % count.
    """

    count: int
    batch_size: int
    seed: int
    train: bool
    rank: int = 0
    world: int = 1
    repeats: int = 1
    # numbers of `count` images in the order of an epoch, from its generator; each once where left out
    order: Callable[[torch.Generator], Tensor] | None = None
    norm_batch: int | None = None
    shared: bool = False

    def __len__(self) -> int:
        if self.train:  # a training batch is full, unless there is only this one
            return max(1, self.count // self.batch_size)
        return math.ceil(len(range(self.rank, self.count, self.world)) / self._evaluated)

    @property
    def _evaluated(self) -> int:
        """Images that a process evaluates at a time."""
        return math.ceil(self.batch_size / self.world)

    @property
    def left_out(self) -> int:
        """How many images full batches leave out of each epoch."""
        return max(0, self.count - len(self) * self.batch_size) if self.train else 0

    @property
    def whole(self) -> int:
        """Images in a training batch over all processes."""
        return min(self.batch_size, self.count)

    @property
    def chunks(self) -> int:
        """Chunks in a training batch over all processes; the last one is short where a small set leaves it so."""
        return self.world if self.norm_batch is None else math.ceil(self.whole / self.norm_batch)

    @property
    def own_chunks(self) -> range:
        """The chunks of this process, or those that it has a part of."""
        if self.shared:
            return range(self.chunks)
        each, more = divmod(self.chunks, self.world)
        first = self.rank * each + min(self.rank, more)
        return range(first, first + each + (self.rank < more))

    def chunk(self, number: int) -> slice:
        """The places of a chunk in a training batch."""
        if self.norm_batch is None:
            return slice(number * self.whole // self.world, (number + 1) * self.whole // self.world)
        return slice(number * self.norm_batch, min((number + 1) * self.norm_batch, self.whole))

    def part(self, number: int) -> slice:
        """The places of what this process has of a chunk."""
        chunk = self.chunk(number)
        if not self.shared:
            return chunk
        first, last = ((chunk.stop - chunk.start) * rank // self.world for rank in (self.rank, self.rank + 1))
        return slice(chunk.start + first, chunk.start + last)

    @property
    def share(self) -> Tensor:
        """The places of this process in a training batch."""
        return torch.cat([torch.arange(part.start, part.stop) for part in map(self.part, self.own_chunks)])

    def batches(self, epoch: int) -> list[Tensor]:
        """The numbers of the images, or of their further views, in each of this process's batches."""
        if not self.train:
            return list(torch.split(torch.arange(self.rank, self.count, self.world), self._evaluated))[: len(self)]
        share = self.share
        return [batch[share] for batch in torch.split(self._shuffled(epoch), self.batch_size)[: len(self)]]

    def digest(self, epoch: int) -> str:
        """16 hex digits of an epoch's images in their order, further views told apart, and of the seed of their draws.

        All draws of augmentation are functions of that seed and of an image's number or place, so two runs whose
        digests are equal are trained on the same. It does not depend on processes.
        """
        numbers = self._shuffled(epoch)[: len(self) * self.batch_size]
        total = hashlib.blake2b(repr((self.seed, epoch, self.batch_size)).encode(), digest_size=8)
        total.update(numbers.numpy().data)
        return total.hexdigest()

    def _shuffled(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator) if self.order is None else self.order(generator)
        return self._repeated(order) if self.repeats > 1 else order

    def _repeated(self, order: Tensor) -> Tensor:
        order = order % self.count + order // self.count * (self.count * self.repeats)  # if it has further views itself
        view = torch.arange(self.count) % self.repeats
        numbers = order.repeat_interleave(self.repeats)[: self.count] + self.count * view
        batches = torch.split(torch.arange(self.count), self.batch_size)
        return torch.cat([numbers[batch[view[batch].argsort(stable=True)]] for batch in batches])


class MemoryLoader:
    """Batches of images that are held on the device as uint8."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        schedule: Schedule,
        augmentation: Augmentation,
        device: torch.device,
        epochs: int,
    ) -> None:
        assert isinstance(split.images, Tensor)
        self.schedule, self.augmentation, self.device, self.epochs = schedule, augmentation, device, epochs
        self.own = (split.images.shape[1], split.images.shape[2])
        self.skipped: set[str] = set()
        self.left_out_per_epoch = schedule.left_out
        self.transform = MemoryTransform(
            split.images, preprocessing, augmentation if schedule.train else Augmentation(), device
        )
        self.normalise = Normalise(preprocessing, device)
        self.labels = split.labels.to(device)
        alternate = schedule.train and augmentation.flip == "alternate"
        self.mirrored_first = (
            torch.tensor([mirrored_first(schedule.seed, i) for i in range(schedule.count)]) if alternate else None
        )

    def __len__(self) -> int:
        return len(self.schedule)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch `start` on."""
        batches = self.schedule.batches(number)[start:]
        if not batches:
            return
        # What an epoch needs crosses to the device at once.
        numbers = torch.cat(batches)
        indices = (numbers % self.schedule.count).to(self.device)
        draws = self._draws(number, range(start, start + len(batches)), numbers) if self.schedule.train else None
        size = self.augmentation.size_in(number, self.epochs) if self.schedule.train else None
        begin = 0
        for batch in batches:
            here = slice(begin, begin + len(batch))
            begin += len(batch)
            index = indices[here]
            images = self.transform(index, None if draws is None else draws.take(here), size)
            yield self.normalise(images), self.labels[index]

    def _draws(self, number: int, steps: range, images: Tensor) -> Draws:
        """The draws of this process's share of some steps, whose `images` are numbered; drawn for the whole batch."""
        schedule = self.schedule
        share = schedule.share
        drawn = [
            draw(self.augmentation, schedule.whole, self.own, seed_for(schedule.seed, number, step)).take(share)
            for step in steps
        ]
        together = Draws.together(drawn)
        if self.mirrored_first is not None:
            view, index = images // schedule.count, images % schedule.count
            together = dataclasses.replace(together, mirror=self.mirrored_first[index] ^ ((number + view) % 2 == 1))
        return together.to(self.device)


class _Images(Dataset[Any]):
    """Images, read and augmented in the worker; an item's key is its number and the epoch's."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        epochs: int,
        seed: int,
        replace_bad: bool,
        desk: Desk,
    ) -> None:
        self.labels, self.channels, self.seed = split.labels, preprocessing.channels, seed
        self.preprocessing, self.augmentation, self.epochs = preprocessing, augmentation, epochs
        self.replace_bad, self.desk = replace_bad, desk
        self.evaluation = EvaluationTransform(preprocessing)
        self.training: dict[tuple[int, int] | None, TrainingTransform] = {}  # by the size that it makes

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, Tensor, list[str]]:
        """The image, nothing where there is none, its label, and what is wrong with each file that was passed by."""
        number, epoch = key
        view, index = divmod(number, len(self.labels))  # beyond the first one, of images that are repeated
        bad: list[str] = []
        for attempt in range(1 + _REPLACEMENTS * self.replace_bad):
            chosen = index if attempt == 0 else seed_for(self.seed, epoch, index, attempt) % len(self.labels)
            try:
                image = self.desk.read(chosen, self.channels)
            except DataError as error:
                bad.append(str(error))  # an exception would reach the main process with the worker's traceback
                continue
            return self._transformed(image, epoch, chosen, view), self.labels[chosen], bad
        return None, self.labels[0], bad

    def _transformed(self, image: Tensor, epoch: int, chosen: int, view: int) -> Tensor:
        augmentation = self.augmentation
        if augmentation is None:
            return self.evaluation(image)
        size = augmentation.size_in(epoch, self.epochs)
        if size not in self.training:
            self.training[size] = TrainingTransform(self.preprocessing, augmentation, size)
        mirror = augmentation.flip == "alternate" and mirrored_first(self.seed, chosen) ^ bool((epoch + view) % 2)
        # torchvision draws from the global generator; seeding that of the CPU alone is a hundred times as fast as
        # `torch.manual_seed` within `torch.random.fork_rng`.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(
                seed_for(self.seed, epoch, chosen, 0, view) if view else seed_for(self.seed, epoch, chosen)
            )
            return self.training[size](image, mirror)
        finally:
            generator.set_state(state)


class _Keys:
    """The sampler: the keys of each batch of the epoch that is set."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.number, self.start = schedule, 0, 0

    def __len__(self) -> int:
        return len(self.schedule) - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.schedule.batches(self.number)[self.start :]:
            yield [(index, self.number) for index in indices.tolist()]


def _collate(items: list[tuple[Tensor | None, Tensor, list[str]]]) -> tuple[Tensor | None, Tensor, list[str]]:
    good = [(image, label) for image, label, _ in items if image is not None]
    images = torch.stack([image for image, _ in good]) if good else None
    labels = torch.stack([label for _, label in good]) if good else torch.empty(0)
    return images, labels, [text for _, _, bad in items for text in bad]


class WorkerLoader:
    """Batches of images that worker processes read, or are given, and augment one at a time."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        schedule: Schedule,
        augmentation: Augmentation,
        device: torch.device,
        workers: int,
        skip_bad_images: bool,
        epochs: int,
    ) -> None:
        self.schedule, self.device, self.skip_bad_images = schedule, device, skip_bad_images
        self.skipped: set[str] = set()
        self.left_out_per_epoch = schedule.left_out
        self.normalise = Normalise(preprocessing, device)
        self.keys, self.desk = _Keys(schedule), Desk(split.images, workers)
        self.loader = DataLoader(
            _Images(
                split,
                preprocessing,
                augmentation if schedule.train else None,
                epochs,
                schedule.seed,
                skip_bad_images and schedule.train,
                self.desk,
            ),
            batch_sampler=self.keys,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each epoch draws from the global one, and a resumed epoch twice
            worker_init_fn=leave_interrupts_to_the_main_process,
        )

    def __len__(self) -> int:
        return len(self.schedule)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch `start` on; raises `DataError` for a file that cannot be decoded.

        Where bad images are skipped, another image of the split, chosen by (seed, epoch, image), takes the place of
        one in training; in evaluation its place is left empty.
        """
        self.keys.number, self.keys.start = number, start
        own = len(self.schedule.share) if self.schedule.train else 0
        # Draws go by the places in a chunk, which a process that shares it cannot know where others lack images.
        least = own if self.schedule.shared else min(2 * len(self.schedule.own_chunks), own)
        for images, labels, bad in self.desk.batches(self.loader):
            if bad and not self.skip_bad_images:
                raise DataError(f"{bad[0]}; remove or mend it, or leave it out by --skip-bad-images")
            self.skipped.update(bad)
            if self.schedule.train and len(labels) < least:
                raise DataError(f"too few images can be decoded to fill a batch, first: {bad[0]}")
            if images is not None:
                yield (
                    self.normalise(images.to(self.device, non_blocking=True)),
                    labels.to(self.device, non_blocking=True),
                )


def make_loader(
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    train: bool,
    augmentation: Augmentation,
    device: torch.device,
    workers: int,
    skip_bad_images: bool,
    rank: int = 0,
    world: int = 1,
    balance: float = 0.0,
    epochs: int = 1,
    norm_batch: int | None = None,
    shared: bool = False,
) -> Loader:
    """Batches of one split: shuffled, augmented and full for training; all images in order for evaluation.

    `batch_size` counts the images of all `world` processes; process `rank` gets its share of them, in whole chunks of
    `norm_batch` where that is given, or a part of each chunk where these are `shared`. For training all processes have
    the same number of steps, rare classes come more often by the power `balance`, 0 to 1, and images have the size that
    goes with the epoch's place among `epochs`.
    Raises `ConfigError` and `DataError`.
    """
    if train and min(batch_size, len(split)) < world:
        raise ConfigError(
            f"a batch of {min(batch_size, len(split))} images cannot be shared by {world} processes; take fewer of "
            "them, or a larger --batch-size"
        )
    if train and norm_batch is not None:
        _check_chunks(min(batch_size, len(split)), norm_batch, world, shared)
    if train:
        _check_border(augmentation, preprocessing, epochs)
    order = None
    if train and split.weights is not None:
        if balance:
            raise ConfigError(
                "data.balance sampler and the weights of the images both say how often these are drawn; leave one out"
            )
        if not split.weights.any():
            raise DataError(
                "all images that are left to train with have the weight 0; give some more, or hold out fewer"
            )
        order = partial(weighted_order, split.weights)
    elif train and balance:
        one_class_each(split.labels)
        order = partial(balanced_order, split.labels, balance)
    repeats = augmentation.repeats if train else 1
    schedule = Schedule(len(split), batch_size, seed, train, rank, world, repeats, order, norm_batch, shared)
    one_at_a_time = train and (augmentation.policy is not None or augmentation.erase > 0)
    if isinstance(split.images, Tensor) and not one_at_a_time:
        return MemoryLoader(split, preprocessing, schedule, augmentation, device, epochs)
    return WorkerLoader(split, preprocessing, schedule, augmentation, device, workers, skip_bad_images, epochs)


def _check_chunks(images: int, norm_batch: int, world: int, shared: bool) -> None:
    """Raise `ConfigError` where a step of so many images has too few chunks, or one that is too small for a norm."""
    chunks = math.ceil(images / norm_batch)
    least = images % norm_batch or norm_batch
    if chunks < world and not shared:
        raise ConfigError(
            f"a step of {images} images has {counted(chunks, 'chunk')} of norm_batch {norm_batch}, too few for "
            f"{world} processes; take fewer processes, a smaller --norm-batch, or --sync-norm, by which they share each"
        )
    if least < world and shared:
        raise ConfigError(
            f"a chunk of {counted(least, 'image')} cannot be shared by {world} processes; take fewer of them, or a "
            "larger --norm-batch"
        )
    if chunks > 1 and images % norm_batch == 1:
        raise ConfigError(
            f"a step has all {images} train images, and its last chunk of norm_batch {norm_batch} would have one, of "
            "which batch norms can take no statistics; take another --norm-batch"
        )


def _check_border(augmentation: Augmentation, preprocessing: Preprocessing, epochs: int) -> None:
    """Raise `ConfigError` where an image has not as many pixels as its mirrored border needs."""
    if augmentation.border == "reflect":
        sizes = [augmentation.size_in(epoch, epochs) or preprocessing.image_size for epoch in range(epochs)]
        least = min(min(size) for size in sizes)
        if augmentation.pad >= least:
            raise ConfigError(
                f"augment.pad is {augmentation.pad}, but images of {least} pixels have only {least - 1} to mirror at "
                "their edge; use less, or augment.border mean"
            )
