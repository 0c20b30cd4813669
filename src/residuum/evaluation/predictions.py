"""What a network says of each image of a labelled split, whichever processes looked at them."""

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from residuum.data.ahead import read_ahead
from residuum.data.sources import Split, name_of, read_image
from residuum.errors import DataError, quoted
from residuum.evaluation.counts import THRESHOLD, Floats, Integers
from residuum.inference.answering import Answering


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of N images, in the order of the split; `source` and `data` name the network and the set, `about` says how.

    `probabilities` are (N, classes), `losses` each image's cross-entropy in nats. Labels are (N,); where images may be
    of several classes (N, classes), zeros and ones, and then the classes' probabilities do not add up to 1.
    """

    source: str
    data: str
    about: str
    classes: tuple[str, ...]
    images: tuple[str, ...]
    labels: Integers
    probabilities: Floats
    losses: Floats
    skipped: tuple[str, ...] = ()  # why each image that could not be decoded was left out
    split: str = ""  # train, val or test
    weights: str = ""  # SHA-256 of the weights file; none for a reference
    mirrored: bool = False  # whether each image was looked at with its mirror image
    images_per_second: float = float("nan")  # reading them included

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image is predicted right; of several classes all must be."""
        if self.several:
            every: NDArray[np.bool_] = ((self.probabilities >= THRESHOLD) == self.labels.astype(bool)).all(1)
            return every
        right: NDArray[np.bool_] = self.probabilities.argmax(1) == self.labels
        return right

    @property
    def several(self) -> bool:
        """Whether an image may be of several classes."""
        return self.labels.ndim == 2


@dataclass(frozen=True)
class Shard:
    """What one process found: the places of its images in the split, their logits in float64, and what it skipped."""

    places: Integers
    logits: Floats
    skipped: tuple[str, ...]


def names(split: Split) -> tuple[str, ...]:
    """A name for each image: its path, or what it is called in the file that holds it; a number for one without."""
    if isinstance(split.images, Tensor):
        return split.names or tuple(map(str, range(len(split))))
    return tuple(map(name_of, split.images))


def look(
    network: Answering,
    split: Split,
    *,
    batch_size: int,
    mirrored: bool = False,
    skip_bad_images: bool = False,
    rank: int = 0,
    world: int = 1,
    count: Callable[[int], None] = lambda images: None,
) -> Shard:
    """The network's logits of images `rank`, `rank + world`, ... of a split, each once; raises `DataError`.

    `mirrored` takes the mean of the probabilities of an image and its mirror image. `count` is told how many images
    are done. No process waits for another here, so that shards of unlike length cannot hang.
    """
    places = list(range(rank, len(split), world))
    found: list[Tensor] = []
    seen: list[int] = []
    skipped: list[str] = []
    for chosen, images in _batches(split, network, places, batch_size, skipped, skip_bad_images):
        out = network(images).double()
        if mirrored:
            turned = images.flip(3) if isinstance(images, Tensor) else [image.flip(2) for image in images]
            other = network(turned).double()
            mean = _mean_of_each if split.labels.ndim == 2 else _mean_of_shares
            out = mean(out, other)
        found.append(out.cpu())
        seen += chosen
        count(len(chosen))
    values = torch.cat(found).numpy() if found else np.zeros((0, 0))
    return Shard(np.array(seen, np.int64), values, tuple(skipped))


def _mean_of_shares(one: Tensor, other: Tensor) -> Tensor:
    """Logits whose softmax is the mean of two softmaxes, finite where theirs are."""
    return torch.logaddexp(one.log_softmax(1), other.log_softmax(1)) - math.log(2)


def _mean_of_each(one: Tensor, other: Tensor) -> Tensor:
    """Logits whose sigmoid is the mean of two sigmoids, finite where theirs are."""
    yes, no = (torch.logaddexp(F.logsigmoid(s * one), F.logsigmoid(s * other)) for s in (1, -1))
    return yes - no


def _batches(
    split: Split,
    network: Answering,
    places: Sequence[int],
    batch_size: int,
    skipped: list[str],
    skip_bad_images: bool,
) -> Iterator[tuple[list[int], Tensor | list[Tensor]]]:
    """The images at some places as the network wants them; files are read one batch ahead of it."""
    images, channels = split.images, network.preprocessing.channels
    if isinstance(images, Tensor):
        for start in range(0, len(places), batch_size):
            group = list(places[start : start + batch_size])
            yield group, network.prepare(images[group].permute(0, 3, 1, 2))
        return

    def read(place: int) -> Tensor | DataError:
        try:
            return network.prepare(read_image(images[place], channels))
        except DataError as error:
            return error

    with contextlib.closing(read_ahead(places, read, 2 * batch_size)) as results:
        while batch := list(itertools.islice(results, batch_size)):
            bad = [str(r) for _, r in batch if isinstance(r, DataError)]
            if bad and not skip_bad_images:
                raise DataError(f"{bad[0]}; remove or mend it, or evaluate without it by --skip-bad-images")
            skipped += bad
            good = [(place, r) for place, r in batch if isinstance(r, Tensor)]
            if good:
                yield [place for place, _ in good], [r for _, r in good]


def joined(
    shards: Sequence[Shard], split: Split, classes: tuple[str, ...], *, source: str, data: str, about: str
) -> Predictions:
    """The predictions of all processes in the order of the split; raises `DataError` where nothing is left."""
    places = np.concatenate([shard.places for shard in shards])
    skipped = tuple(sorted(why for shard in shards for why in shard.skipped))
    if not len(places):
        raise DataError(f"no image of {quoted(data, 200)} can be decoded, first: {skipped[0] if skipped else 'none'}")
    logits = torch.from_numpy(np.concatenate([shard.logits for shard in shards if len(shard.places)]))
    order = np.argsort(places, kind="stable")
    labels = split.labels[torch.from_numpy(places[order])]
    logits = logits[torch.from_numpy(order)]
    if not logits.isfinite().all():
        raise DataError(f"{source} gives NaN or infinity on {quoted(data, 200)}; its figures would mean nothing")
    if labels.ndim == 2:
        losses = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(1)
        probabilities = logits.sigmoid()
    else:
        losses, probabilities = F.cross_entropy(logits, labels, reduction="none"), logits.softmax(1)
    every = names(split)
    return Predictions(
        source, data, about, classes, tuple(every[i] for i in places[order]), labels.long().numpy(),
        probabilities.numpy(), losses.numpy(), skipped,
    )  # fmt: skip


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """The rank of this process and how many there are: under `torchrun` they join within the block; else 0 and 1."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or torch.distributed.is_initialized():
        yield (torch.distributed.get_rank(), torch.distributed.get_world_size()) if world > 1 else (0, 1)
        return
    torch.distributed.init_process_group("gloo")  # numbers of whole images travel, not tensors of a network
    try:
        yield torch.distributed.get_rank(), world
    finally:
        torch.distributed.destroy_process_group()


def gathered(shard: Shard, world: int) -> list[Shard]:
    """The shards of all processes, in each of them."""
    if world == 1:
        return [shard]
    shards: list[Shard] = [shard] * world
    torch.distributed.all_gather_object(shards, shard)
    return shards
