"""From a source to batches on the device. Every batch is a function of seed, epoch and step alone.

So a run that stops in the middle of an epoch goes on with the very same batches, and nothing about the data has to be
saved. Small images live on the device as uint8 and are cropped and mirrored a batch at a time; files are read by
workers.
"""

import hashlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from residuum.data.sources import Part, evaluation_transform, normalise, read_image
from residuum.errors import DataError
from residuum.preprocessing import Preprocessing


def seed_for(*parts: int) -> int:
    """A 63-bit seed that depends on all parts: equal parts give equal seeds, others unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class Augmentation:
    """How training batches vary: shift by up to `pad` pixels (in-memory images) and mirror with `flip`."""

    pad: int
    flip: bool


class Batches(Protocol):
    """Batches of float (N, C, H, W), channels-last, and labels (N,), on the device."""

    skipped: set[str]

    def __len__(self) -> int: ...

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch `start` on."""
        ...


@dataclass
class Plan:
    """Which images make up which batch: shuffled for training, in order (and to the last one) for evaluation."""

    count: int
    batch_size: int
    seed: int
    train: bool

    def __len__(self) -> int:
        if self.train:  # a training batch is full, unless there is only this one
            return max(1, self.count // self.batch_size)
        return math.ceil(self.count / self.batch_size)

    def batches(self, epoch: int) -> list[Tensor]:
        if not self.train:
            return list(torch.split(torch.arange(self.count), self.batch_size))
        generator = torch.Generator().manual_seed(seed_for(self.seed, epoch))
        return list(torch.split(torch.randperm(self.count, generator=generator), self.batch_size))[: len(self)]


class MemoryBatches:
    """Batches of images that are held on the device as uint8."""

    def __init__(
        self, part: Part, preprocessing: Preprocessing, plan: Plan, augmentation: Augmentation, device: torch.device
    ) -> None:
        assert isinstance(part.images, Tensor)
        self.plan, self.preprocessing, self.augmentation = plan, preprocessing, augmentation
        self.skipped: set[str] = set()
        images = part.images.permute(0, 3, 1, 2)
        pad = augmentation.pad if plan.train else 0
        edge = (torch.tensor(preprocessing.mean) * 255).round().to(torch.uint8)  # a border that normalises to 0
        padded = (
            edge.view(1, -1, 1, 1).expand(len(part), -1, *(side + 2 * pad for side in preprocessing.image_size)).clone()
        )
        padded[:, :, pad : pad + images.shape[2], pad : pad + images.shape[3]] = images
        self.images = padded.permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = part.labels.to(device)

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch `start` on."""
        for step, chosen in enumerate(self.plan.batches(number)):
            if step >= start:
                index = chosen.to(self.images.device)
                rows, columns = self._window(len(index), seed_for(self.plan.seed, number, step))
                # One gather takes crop and mirror together and leaves channels last in memory.
                images = self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
                yield normalise(images, self.preprocessing), self.labels[index]

    def _window(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """The row and column numbers, (N, H) and (N, W), that each image is read from."""
        height, width = self.preprocessing.image_size
        rows, columns = torch.arange(height).expand(count, -1), torch.arange(width).expand(count, -1)
        if self.plan.train:
            generator = torch.Generator().manual_seed(seed)
            shift = torch.randint(2 * self.augmentation.pad + 1, (2, count, 1), generator=generator)
            mirror = torch.rand(count, 1, generator=generator) < 0.5
            if self.augmentation.flip:
                columns = torch.where(mirror, columns.flip(1), columns)
            rows, columns = rows + shift[0], columns + shift[1]
        return rows.to(self.images.device), columns.to(self.images.device)


class _Files(Dataset[Any]):
    """Image files, read and augmented in the worker; the item's key carries the seed of its augmentation."""

    def __init__(self, part: Part, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        assert not isinstance(part.images, Tensor)
        self.paths, self.labels, self.channels = part.images, part.labels, preprocessing.channels
        self.transform: v2.Transform = evaluation_transform(preprocessing)
        if augmentation is not None:
            steps: list[v2.Transform] = [v2.RandomResizedCrop(preprocessing.image_size, antialias=True)]
            self.transform = v2.Compose(steps + ([v2.RandomHorizontalFlip()] if augmentation.flip else []))

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, int, str]:
        index, seed = key
        path, label = self.paths[index], int(self.labels[index])
        try:
            image = read_image(path, self.channels)
        except DataError as error:
            return None, label, str(error)  # an exception would reach the main process with the worker's traceback
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(seed)
            return self.transform(image), label, path


class _Keys:
    """The sampler: the keys of each batch of the epoch that is set."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.number, self.start = plan, 0, 0

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.plan.batches(self.number)[self.start :]:
            yield [(i, seed_for(self.plan.seed, self.number, i)) for i in indices.tolist()]


def _collate(items: list[tuple[Tensor | None, int, str]]) -> tuple[Tensor | None, Tensor, list[str]]:
    good = [(image, label) for image, label, _ in items if image is not None]
    bad = [message for image, _, message in items if image is None]
    images = torch.stack([image for image, _ in good]) if good else None
    return images, torch.tensor([label for _, label in good]), bad


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the step under way needs its batch


class FileBatches:
    """Batches of image files, read by worker processes."""

    def __init__(
        self,
        part: Part,
        preprocessing: Preprocessing,
        plan: Plan,
        augmentation: Augmentation,
        device: torch.device,
        workers: int,
        skip_bad_images: bool,
    ) -> None:
        self.plan, self.preprocessing, self.device, self.skip_bad_images = plan, preprocessing, device, skip_bad_images
        self.skipped: set[str] = set()
        self.keys = _Keys(plan)
        self.loader = DataLoader(
            _Files(part, preprocessing, augmentation if plan.train else None),
            batch_sampler=self.keys,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each epoch draws from the global one, and a resumed epoch twice
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch `start` on; a file that cannot be decoded raises `DataError`."""
        self.keys.number, self.keys.start = number, start
        for images, labels, bad in self.loader:
            if bad and not self.skip_bad_images:
                raise DataError(f"{bad[0]}; remove or mend it, or train without it by --skip-bad-images")
            self.skipped.update(bad)
            if images is None:
                raise DataError(f"a batch of {len(bad)} images has none that can be decoded, first: {bad[0]}")
            moved = images.to(self.device, non_blocking=True).to(memory_format=torch.channels_last)
            yield normalise(moved, self.preprocessing), labels.to(self.device, non_blocking=True)


def make_batches(
    part: Part,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    train: bool,
    augmentation: Augmentation,
    device: torch.device,
    workers: int,
    skip_bad_images: bool,
) -> Batches:
    """Batches of one part: shuffled, augmented and full for training; all images in order for evaluation."""
    plan = Plan(len(part), batch_size, seed, train)
    if isinstance(part.images, Tensor):
        return MemoryBatches(part, preprocessing, plan, augmentation, device)
    return FileBatches(part, preprocessing, plan, augmentation, device, workers, skip_bad_images)
