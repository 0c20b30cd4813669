"""What `residuum explain` does: a folder with a picture for each image, a sheet of the first, and the maps as arrays.

NAME.png     the image, and a map over it for each class
sheet.png    the first images with the map of their likeliest class, where there are several
maps.npz     maps (N, K, h, w), classes (N, K), probabilities (N, K), images (N,), and the names of the classes
"""

import itertools
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residuum.data.ahead import read_ahead
from residuum.data.sources import evaluation_transform, normalise, read_image
from residuum.devices import pick_device
from residuum.errors import ConfigError, DataError, WeightsError, quoted
from residuum.files import new_folder
from residuum.inference.answering import loaded
from residuum.inference.explain import TOGETHER, TOP, Classes, Explanation, Method, check_method, explained, ready
from residuum.nn.resnet import ResNet
from residuum.report.pictures import SMALLEST, Picture, Scale, draw_maps, draw_sheet, enlarged, overlaid, words
from residuum.runtimes.exported import RUNTIMES
from residuum.weights.converting import unsaid

SHEET = 24  # images on the sheet
COLUMNS = 6
CLIPPED = 99.5  # percentile of signed maps that the strongest colour stands for: single pixels reach far beyond
EXPORTED = (*RUNTIMES, ".ts")
UNITS: dict[Method, str] = {
    "gradcam": "contribution to the class's logit",
    "ig": "contribution to the class's logit",
    "occlusion": "fall of the class's logit where covered",
}


def explain_files(
    source: str | Path | ResNet,
    images: Sequence[str | Path],
    out: Path,
    *,
    method: Method = "gradcam",
    classes: Classes | str = TOP,
    stage: int | None = None,
    device: str = "auto",
    say: Callable[[str, Sequence[tuple[str, float]], Path], object] = lambda image, classes, picture: None,
) -> None:
    """Explain image files by any source that `load` takes, and write the folder `out`, which must not be there yet.

    `classes` is a number of likeliest classes, names or numbers of classes, or both as the command line writes them:
    `top3` or `cat,dog`. `say` is told of each image its classes with their probabilities, and its picture. Raises what
    `explain`, `load` and `read_image` raise; nothing is left of the folder then.
    """
    if not images:
        raise DataError("no image was given; name at least one file")
    if isinstance(source, str | Path) and Path(source).suffix in EXPORTED:
        raise WeightsError(f"{quoted(str(source))} was exported and has no gradients; give the run or its weights")
    model = source if isinstance(source, ResNet) else loaded(source).to(pick_device(device))
    if model.preprocessing is None:
        raise unsaid(source, "preprocessing")
    check_method(method, stage, model)
    with torch.inference_mode(False), torch.no_grad():
        network = ready(model)
    asked = _asked(classes, network) if isinstance(classes, str) else classes
    with new_folder(out, DataError) as folder, _Maps(folder / "maps.npz") as kept:
        pictures = _Pictures(folder, network)
        for paths, pixels in _batches(images, network):
            taken = normalise(pixels, model.preprocessing)
            found = explained(network, taken, method=method, classes=asked, stage=stage)
            kept.add(found)
            for i, path in enumerate(paths):
                written = pictures.draw(path, pixels[i], found, i)
                say(path, named(found, network, i), out / written)
        pictures.finish(len(images))
        kept.finish(paths=[os.fspath(path) for path in images], network=network)


def named(found: Explanation, network: ResNet, place: int) -> list[tuple[str, float]]:
    """Name and probability of each class that was explained of an image."""
    numbers, shares = found.classes[place].tolist(), found.probabilities[place].tolist()
    return [(class_name(network, n), share) for n, share in zip(numbers, shares, strict=True)]


def class_name(network: ResNet, number: int) -> str:
    """A class as people know it."""
    return network.classes[number] if network.classes is not None else f"class {number}"


def _asked(text: str, network: ResNet) -> Classes:
    """The classes that a command line names; a name with a comma in it counts where it is the whole."""
    if text in (network.classes or ()):
        return [text]
    if text.startswith("top") and text[3:].isdigit() and len(text) < 10:
        return int(text[3:])
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if not asked:
        raise ConfigError(f"classes is {quoted(text)}; it must be topN or names of classes, with commas between")
    return asked


def _batches(images: Sequence[str | Path], network: ResNet) -> Iterator[tuple[list[str], Tensor]]:
    """Paths and uint8 (N, C, H, W), read ahead by threads."""
    preprocessing = network.preprocessing
    assert preprocessing is not None
    transform = evaluation_transform(preprocessing)

    def read(path: str) -> Tensor:
        return transform(read_image(path, preprocessing.channels))

    pixels = read_ahead((os.fspath(image) for image in images), read, 2 * TOGETHER)
    device = next(network.parameters()).device
    try:
        while batch := list(itertools.islice(pixels, TOGETHER)):
            yield [path for path, _ in batch], torch.stack([image for _, image in batch]).to(device)
    finally:
        pixels.close()


@dataclass
class _Pictures:
    """Writes the pictures of a folder, each under the name of its image."""

    folder: Path
    network: ResNet
    taken: set[str] = field(default_factory=lambda: {"sheet"})
    sheet: list[Picture] = field(default_factory=list)

    def draw(self, path: str, pixels: Tensor, found: Explanation, place: int) -> str:
        """Draw one image; the name of the picture."""
        image = pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
        maps = found.maps[place].cpu().numpy()
        scale = scale_of(maps, found.method)
        titles = [f"{words(name, 26)}\n{100 * share:.1f} %" for name, share in named(found, self.network, place)]
        name = self._free(Path(path).stem)
        title = words(Path(path).name, 30)
        note = described(found)
        draw_maps(image, list(zip(titles, maps, strict=True)), scale, title, note, self.folder / name, DataError)
        if len(self.sheet) < SHEET:
            self.sheet.append(Picture(overlaid(enlarged(image), maps[0], scale), titles[0]))
        return name

    def finish(self, count: int) -> None:
        """Draw the sheet, where there are several images."""
        if count < 2:
            return
        title = f"the first {SHEET} of {count:,} images" if count > SHEET else f"{count} images"
        columns = min(COLUMNS, count)
        draw_sheet(self.sheet, title, self.folder / "sheet.png", DataError, columns=columns)

    def _free(self, stem: str) -> str:
        stem = words(stem, 100).replace("/", "_")
        name, number = stem, 1
        while name.casefold() in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name.casefold())
        return f"{name}.png"


def scale_of(maps: NDArray[np.float32], method: Method) -> Scale:
    """One scale for all maps (K, h, w) of an image, so that the class that speaks loudest looks so."""
    signed = method != "gradcam"
    strength = np.abs(maps)
    most = float(np.percentile(strength, CLIPPED) if method == "ig" else strength.max())
    return Scale(most or float(strength.max()) or 1.0, signed, UNITS[method])


def described(found: Explanation) -> str:
    """The method and the resolution that its maps truly have."""
    height, width = found.maps.shape[2:]
    size = f"{height} \N{MULTIPLICATION SIGN} {width}"
    if found.method == "gradcam":
        return f"Grad-CAM at stage {found.stage}: {size} cells, drawn smoothly"
    if found.method == "ig":
        smooth = ", drawn smoothly" if max(height, width) < SMALLEST else ""
        return f"Integrated gradients from the mean colour: {size} pixels{smooth}"
    return f"Occlusion by a grey square: {size} positions, drawn smoothly"


class _Maps:
    """The file of all maps, written as they come: of many images they would not fit into memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.raw = path, path.with_suffix(".raw")
        self.shape: tuple[int, ...] = ()
        self.classes: list[NDArray[Any]] = []
        self.probabilities: list[NDArray[Any]] = []
        self.method: Method = "gradcam"

    def __enter__(self) -> "_Maps":
        self.file = self.raw.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.raw.unlink(missing_ok=True)

    def add(self, found: Explanation) -> None:
        """Take the maps of some images."""
        values = np.ascontiguousarray(found.maps.cpu().numpy(), dtype="<f4")
        self.file.write(values.data)
        self.shape, self.method = values.shape[1:], found.method
        self.classes.append(found.classes.cpu().numpy())
        self.probabilities.append(found.probabilities.cpu().numpy())

    def finish(self, paths: Sequence[str], network: ResNet) -> None:
        """Write the file."""
        self.file.close()
        beside = {
            "classes": np.concatenate(self.classes),
            "probabilities": np.concatenate(self.probabilities),
            "images": np.array(paths, dtype=str),
            "names": np.array([class_name(network, i) for i in range(network.config.num_classes)], dtype=str),
            "method": np.array(self.method),
        }
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("maps.npy", "w", force_zip64=True) as member, self.raw.open("rb") as raw:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), *self.shape)}
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(raw, member)
            for name, values in beside.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
