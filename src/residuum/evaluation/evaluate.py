"""From a network and a dataset to predictions: whose preprocessing, which split, which class is which."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from residuum.data.catalog import Catalog, scan
from residuum.data.settings import DataSettings
from residuum.data.sources import Dataset, Split, open_dataset
from residuum.devices import pick_device, set_up
from residuum.errors import DataError, WeightsError, nearest, quoted
from residuum.evaluation.predictions import Predictions, gathered, joined, look
from residuum.evaluation.runs import weights_digest
from residuum.inference.answering import answering
from residuum.preprocessing import Preprocessing
from residuum.runtimes.exported import Runtime
from residuum.units import counted
from residuum.validation import AtLeast, check

SplitName = Literal["auto", "train", "val", "test"]


@dataclass(frozen=True)
class How:
    """What does not belong to the network or the data: it changes no count, but for `precision` and `mirrored`."""

    split: SplitName = "auto"
    batch_size: Annotated[int, AtLeast(1)] = 64
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    mirrored: bool = False  # the mean over each image and its mirror image
    runtime: Runtime = "auto"  # what runs an exported file

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, eq=False)
class Subject:
    """A split to evaluate on: its images, what they are called, and whose classes the labels count."""

    name: str
    classes: tuple[str, ...]
    split: Split


def evaluate(
    source: str | Path,
    settings: DataSettings,
    how: How,
    *,
    cache: Path,
    rank: int = 0,
    world: int = 1,
    catalog: Catalog | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Predictions, Subject, Preprocessing]:
    """What a network says of each image of a dataset: any source that `residuum.load` reads or an exported file, with
    the preprocessing that it carries.

    The split is `how.split`; `auto` is the test split where the data has one, else the validation split. Labels are
    brought to the network's classes by name. In each of `world` processes the whole is returned. A `catalog` of the
    data that is at hand saves scanning it again. Raises `WeightsError`, `DataError`, `ConfigError`.
    """
    network = answering(
        source, device=how.device, precision=how.precision, runtime=how.runtime, names_classes=False,
        image_size=settings.image_size,
    )  # fmt: skip
    preprocessing = network.preprocessing
    catalog = catalog or scan(settings.path)
    # How images are looked at is the network's to say, so that small ones are all the same held as they are.
    # Where the network wants another size, each is read in its own.
    held = not any(catalog.files.values()) or catalog.image_size == preprocessing.image_size
    size = None if held else preprocessing.image_size
    plain = replace(settings, image_size=size, crop=None, interpolation="bilinear", mean=None, std=None)
    dataset = open_dataset(catalog, plain, channels=preprocessing.channels, cache=cache, say=say)
    subject = chosen_split(catalog, dataset, how.split)
    if network.several_classes and not catalog.several:
        raise DataError(
            f"{network.what} answers for images of several classes, but those of {quoted(catalog.name, 200)} are of one"
        )
    classes = network.classes or (subject.classes if len(subject.classes) == network.outputs else None)
    if classes is None:
        raise WeightsError(
            f"{network.what} does not say its classes, and its {network.outputs} outputs are not the "
            f"{len(subject.classes)} classes of the data; name them by 'residuum convert ... --classes names.txt'"
        )
    labelled = Split(subject.split.images, _labels(subject, classes), names=subject.split.names)
    set_up(pick_device(how.device))
    done, start = 0, time.perf_counter()

    def count(images: int) -> None:
        nonlocal done
        done += images
        say(f"{done:,} of {-(-(len(labelled) - rank) // world):,} images")

    shard = look(
        network, labelled, batch_size=how.batch_size, mirrored=how.mirrored, skip_bad_images=settings.skip_bad_images,
        rank=rank, world=world, count=count,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    height, width = preprocessing.image_size
    about = f"{counted(len(labelled), 'image')} of the {subject.name} split at {height}x{width}"
    about += f"{', each with its mirror image' if how.mirrored else ''}, in {network.runs_in}."
    if not network.classes:
        about += " The weights do not name their classes: they are taken to be the data's, in order."
    if catalog.several and not network.several_classes:
        about += " The weights answer for images of one class: here each class is taken by itself, by the sigmoid."
    shards = gathered(shard, world)
    found = joined(shards, labelled, classes, source=str(source), data=catalog.location, about=about)
    found = replace(
        found, split=subject.name, images_per_second=len(found.images) / seconds, mirrored=how.mirrored,
        skipped=(*dataset.skipped.get(subject.name, ()), *found.skipped),
        weights=_weights_digest(Path(source)),
    )  # fmt: skip
    return found, Subject(subject.name, classes, labelled), preprocessing


def _weights_digest(source: Path) -> str:
    """That of a run, or of a file as runs have it; empty for others, with which no run is compared."""
    file = source / "weights.safetensors" if source.is_dir() else source
    return weights_digest(file) if file.suffix == ".safetensors" else ""


def chosen_split(catalog: Catalog, dataset: Dataset, wanted: SplitName) -> Subject:
    """The split that is asked for; raises `DataError` where the data has none."""
    there = {"test": dataset.test, "val": dataset.val, "train": dataset.train}
    name = next(n for n, split in there.items() if split is not None) if wanted == "auto" else wanted
    split = there[name]
    if split is None:
        have = ", ".join(n for n, s in there.items() if s is not None)
        raise DataError(f"{quoted(catalog.name, 200)} has no {name} split; it has {have}")
    return Subject(name, dataset.classes, split)


def relabelled(subject: Subject, classes: tuple[str, ...]) -> torch.Tensor:
    """The network's label of each class of the data, found by name; int64 (classes of the data,).

    Folders named by WordNet ids are matched to ImageNet's 1,000 classes where timm, which knows the ids, is installed.
    Raises `DataError` where a class is not the network's.
    """
    place = {name: i for i, name in enumerate(classes)}
    counts = Counter(classes)
    twice = next((name for name in subject.classes if counts[name] > 1), None)
    if twice is not None:
        raise DataError(f"the network has {counts[twice]} classes called {quoted(twice, 40)}; which is not known")
    missing = [name for name in subject.classes if name not in place]
    if not missing:
        return torch.tensor([place[name] for name in subject.classes])
    synsets = _synsets() if len(classes) == 1000 else {}
    if all(name in synsets for name in subject.classes):
        return torch.tensor([synsets[name] for name in subject.classes])
    shown = ", ".join(quoted(name, 40) for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
    raise DataError(
        f"the network knows no class {shown}{nearest(missing[0], classes)}; name the class folders as its classes, "
        f"of which {quoted(classes[0], 40)} is the first of {len(classes)}"
    )


def _labels(subject: Subject, classes: tuple[str, ...]) -> torch.Tensor:
    """The labels of the images as the network counts its classes."""
    place, own = relabelled(subject, classes), subject.split.labels
    if own.ndim == 1:
        return place[own]
    labels = torch.zeros(len(own), len(classes))
    labels[:, place] = own
    return labels


def _synsets() -> dict[str, int]:
    """WordNet id of each of ImageNet's classes to its label, as far as that is known here."""
    try:
        from timm.data import imagenet_info
    except ImportError:
        return {}
    names: list[str] = imagenet_info.ImageNetInfo().label_names()
    return {name: i for i, name in enumerate(names)}
