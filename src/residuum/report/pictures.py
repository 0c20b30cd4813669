"""Pictures as PNG files: sheets of images with words above each, and maps laid over an image."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residuum.errors import ResiduumError, shortened
from residuum.files import write_whole

Pixels = NDArray[np.uint8]  # (H, W, 3)
DPI = 130
SMALLEST = 224  # pixels of a side to which small images are enlarged before a map is laid over them
# Against (blue) to for (red), by way of nothing; told apart by people who do not see all colours.
_AGAINST, _FOR = ("#08306b", "#2b7bba", "#9ecae1"), ("#fdbb84", "#e34a33", "#8b0000")
_COVER = 0.82  # how much of the image the strongest colour covers


@dataclass(frozen=True)
class Picture:
    """An image and the words above it."""

    image: NDArray[Any]  # uint8 or float in [0, 1], (H, W, 3)
    words: str


@dataclass(frozen=True)
class Scale:
    """What the strongest colour stands for, above 0, and whether values below zero can be."""

    most: float
    signed: bool
    unit: str

    @property
    def least(self) -> float:
        """What the other end of the colours stands for."""
        return -self.most if self.signed else 0.0


def draw_sheet(
    pictures: Sequence[Picture], title: str, path: Path, error: type[ResiduumError], *, columns: int
) -> None:
    """Pictures in rows, from the left; raises `error` where the file cannot be written."""
    from matplotlib.figure import Figure

    rows = max(1, -(-len(pictures) // columns))
    with _as_text():
        figure = Figure(figsize=(1.9 * columns, 2.25 * rows + 0.3), layout="constrained")
        _laid_out(figure, pictures, rows, columns, fontsize=7.5)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        write_whole(path, lambda partial: figure.savefig(partial, dpi=DPI), error)


def draw_maps(
    image: Pixels,
    maps: Sequence[tuple[str, NDArray[np.float32]]],
    scale: Scale,
    title: str,
    note: str,
    path: Path,
    error: type[ResiduumError],
) -> None:
    """An image beside itself under each map (h, w), all on one scale with its bar; raises `error` as `write_whole`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    large = enlarged(image)
    panels = [Picture(large, title), *(Picture(overlaid(large, values, scale), words) for words, values in maps)]
    columns = min(len(panels), 5)
    rows = -(-len(panels) // columns)
    height, width = large.shape[:2]
    one = 2.5 * min(2.0, max(0.4, height / width))  # inches
    with _as_text():
        figure = Figure(figsize=(2.5 * columns + 0.9, (one + 0.42) * rows + 0.3), layout="constrained")
        grid = _laid_out(figure, panels, rows, columns, fontsize=9)
        bar = figure.colorbar(
            ScalarMappable(Normalize(scale.least, scale.most), _colours(scale.signed)), ax=grid, shrink=0.8,
            aspect=18, pad=0.015,
        )  # fmt: skip
        bar.set_label(scale.unit, fontsize=8)
        bar.ax.tick_params(labelsize=7.5)
        bar.ax.locator_params(nbins=5)
        bar.outline.set_visible(False)
        figure.supxlabel(note, fontsize=7.5, color="#555555", x=0.01, ha="left")
        write_whole(path, lambda partial: figure.savefig(partial, dpi=DPI), error)


def _laid_out(figure: Any, pictures: Sequence[Picture], rows: int, columns: int, *, fontsize: float) -> Any:
    """The axes of pictures in rows, from the left, each with its words above."""
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture in zip(grid.flat, pictures, strict=False):
        axes.imshow(picture.image, interpolation="nearest")
        axes.set_title(picture.words, fontsize=fontsize)
    return grid


def overlaid(image: Pixels, values: NDArray[np.float32], scale: Scale) -> NDArray[np.float64]:
    """An image in grey under the colours of a map (h, w) of any resolution, float (H, W, 3) in [0, 1]."""
    height, width = image.shape[:2]
    drawn = spread_out(values, height, width)
    drawn = drawn.clip(values.min(), values.max())  # smoothing overshoots
    share = np.clip(drawn / scale.most, scale.least / scale.most, 1)
    colours: NDArray[np.float64] = _colours(scale.signed)((share + 1) / 2 if scale.signed else share)[..., :3]
    grey = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    grey = (0.12 + 0.76 * grey)[..., None]
    cover = _COVER * np.abs(share)[..., None] ** 0.7
    mixed: NDArray[np.float64] = (1 - cover) * grey + cover * colours
    return mixed


def spread_out(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float64]:
    """A map at another size: smooth where it grows, the mean of what falls together where it shrinks."""
    from PIL import Image

    plane = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    smooth = Image.Resampling.BICUBIC if max(height, width) > max(values.shape) else Image.Resampling.BOX
    return np.asarray(plane.resize((width, height), smooth), dtype=np.float64)


def enlarged(image: Pixels) -> Pixels:
    """An image whose shorter side is enlarged by a whole number until it is large enough for a map to be seen."""
    times = math.ceil(SMALLEST / max(image.shape[:2])) if max(image.shape[:2]) < SMALLEST else 1
    return image.repeat(times, 0).repeat(times, 1)


def _colours(signed: bool) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    nothing = "#f0f0f0"
    stops = [*_AGAINST, nothing, *_FOR] if signed else [nothing, *_FOR]
    return LinearSegmentedColormap.from_list("for and against" if signed else "for", stops)


@contextmanager
def _as_text() -> Iterator[None]:
    """Text is not read as mathematics, and a letter that the font lacks is drawn as a box without a warning."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def words(text: str, longest: int) -> str:
    """A text from outside as a picture shows it."""
    return shortened(text, longest)
