"""What `residuum evaluate` does: one network or two on the same images, tables, and a folder of files."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from residuum.data.catalog import Catalog, scan
from residuum.data.settings import DataSettings
from residuum.data.sources import Split, evaluation_transform, read_image
from residuum.errors import ConfigError, DataError, RunError, quoted
from residuum.evaluation.counts import count, pair
from residuum.evaluation.evaluate import How, evaluate
from residuum.evaluation.predictions import Predictions, names, processes
from residuum.evaluation.report import paired_table, print_evaluation, write_folder
from residuum.evaluation.several import count_several, print_several, write_several
from residuum.files import cache_folder, new_folder, read_text
from residuum.preprocessing import Preprocessing
from residuum.report.tables import print_table
from residuum.train.run import Run
from residuum.validation import parse_toml
from residuum.weights.hubs import is_reference
from residuum.weights.reading import file_of

SAY_EVERY = 10.0  # seconds between lines of progress


@dataclass(frozen=True)
class Request:
    """What is asked for; fields of the data that are None are those of the run, where the source is one."""

    source: str
    against: str | None
    data: str | None
    holdout: float | None
    image_size: tuple[int, int] | None
    skip_bad_images: bool
    out: Path | None


def evaluate_and_report(request: Request, how: How, console: Console, command: str) -> int:
    """Evaluate, print and write; the exit code. Under `torchrun` the first process alone prints and writes.

    Raises `ResiduumError`; a folder that could not be written whole is not left behind.
    """
    catalog = None if request.data is None else scan(request.data)
    settings = data_settings(request, catalog)
    catalog = catalog or scan(settings.path)
    out = request.out
    if out is not None and out.exists():
        raise DataError(f"{quoted(str(out), 200)} exists already; choose another --out")
    if request.against is not None:
        from residuum.extras import need

        need("scipy.stats", extra="stats")  # said before the network is run
    with processes() as (rank, world):
        first = rank == 0
        say = _now_and_then(console) if first else lambda text: None

        def predicted(source: str) -> tuple[Predictions, Split, Preprocessing]:
            found, subject, preprocessing = evaluate(
                source, settings, how, cache=cache_folder(), rank=rank, world=world, catalog=catalog, say=say
            )
            return found, subject.split, preprocessing

        found, split, preprocessing = predicted(request.source)
        other = predicted(request.against) if request.against is not None else None
        if not first:
            return 0
        one = count(found.classes, found.labels, found.probabilities, found.losses) if not found.several else None
        several = count_several(found.classes, found.labels, found.probabilities, found.losses) if one is None else None
        if one is not None:
            print_evaluation(console, found, one)
        elif several is not None:
            print_several(console, found, several)
        for why in found.skipped:
            console.print(f"left out   {why}", markup=False, highlight=False, soft_wrap=True)
        if other is not None:
            print_table(console, paired_table(found, other[0], pair(*_common(found, other[0]))))
        if out is not None:
            with new_folder(out, DataError) as folder:
                if one is not None:
                    write_folder(folder, found, one, _shown(split, preprocessing, found), command)
                elif several is not None:
                    write_several(folder, found, several, command)
            console.print(f"written: {quoted(str(out), 200)}", markup=False, highlight=False, soft_wrap=True)
    return 0


def data_settings(request: Request, catalog: Catalog | None) -> DataSettings:
    """The data that is asked for, of which the catalog is; what is not said is as in the run.

    Raises `ConfigError` where nothing says it.
    """
    settings = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        settings = settings_of_run(request.source)
    if settings is None and request.data is None:
        if not is_reference(request.source):
            file_of(Path(request.source))  # a file that is not there is what is wrong first
        raise ConfigError(f"{quoted(request.source, 200)} is no run, which would say its data; give --data")
    if request.data is not None and catalog is not None:
        if settings is not None and _is_data_of(request.source, settings, catalog):
            settings = replace(settings, path=request.data)
        else:  # nothing of it has been held out of a training
            settings = DataSettings(path=request.data, holdout=0.0)
    assert settings is not None
    if request.holdout is not None:
        settings = replace(settings, holdout=request.holdout)
    skip = request.skip_bad_images or settings.skip_bad_images
    return replace(settings, image_size=request.image_size, skip_bad_images=skip)


def _is_data_of(source: str, settings: DataSettings, catalog: Catalog) -> bool:
    """Whether data is what a run was trained on, wherever it lies now and however its place is spelled."""
    if catalog.location == settings.path:
        return True
    path = Path(source)
    try:
        return Run(path.parent if path.is_file() else path).data().digest == catalog.digest
    except RunError:
        return False


def settings_of_run(source: str | Path) -> DataSettings:
    """The data of a run, or of that whose folder a weights file lies in.

    Raises `ConfigError`, `KeyError` or `TypeError` for no recipe, or one without this table.
    """
    path = Path(source)
    run = path.parent if path.is_file() else path
    return DataSettings(**parse_toml(read_text(run / "recipe.toml", ConfigError))["data"])


def _now_and_then(console: Console) -> Callable[[str], None]:
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > SAY_EVERY:
            last = time.monotonic()
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say


def _common(first: Predictions, second: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the images that both have looked at each has right; raises `DataError` where labels are not the same."""
    place = {name: i for i, name in enumerate(second.images)}
    both = [(i, place[name]) for i, name in enumerate(first.images) if name in place]
    mine, theirs = (np.array(side, dtype=np.int64) for side in zip(*both, strict=True))
    if first.several:
        same = first.classes == second.classes and bool((first.labels[mine] == second.labels[theirs]).all())
    else:
        called = [np.array(p.classes, dtype=object)[p.labels] for p in (first, second)]
        same = bool((called[0][mine] == called[1][theirs]).all())
    if not same:
        raise DataError("the two networks name the classes differently, so that they cannot be compared image by image")
    return first.right[mine], second.right[theirs]


def _shown(split: Split, preprocessing: Preprocessing, found: Predictions) -> Callable[[int], NDArray[np.uint8]]:
    """The picture of each prediction as the network saw it, uint8 (H, W, 3)."""
    transform = evaluation_transform(preprocessing)
    place_of = {name: i for i, name in enumerate(names(split))}

    def image(place: int) -> NDArray[np.uint8]:
        at = place_of[found.images[place]]
        if isinstance(split.images, Tensor):
            pixels = split.images[at].permute(2, 0, 1)
        else:
            pixels = transform(read_image(split.images[at], preprocessing.channels))
        values: NDArray[np.uint8] = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
        return values

    return image
