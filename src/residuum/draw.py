"""A picture of a network: every convolution a bar, every shortcut an arc, heights by image size, widths by channels."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residuum.config import BlockPlan, ResNetConfig
from residuum.errors import ResiduumError
from residuum.files import write_whole

FORMATS = (".svg", ".png")
_STEM, _HEAD, _INK, _IDENTITY, _PROJECTION = "#64748b", "#334155", "#1e293b", "#94a3b8", "#ea580c"
_STAGES = ("#0d9488", "#2563eb", "#7c3aed", "#be185d", "#b45309")
_GAP = 0.04  # inches
_LABEL = 1.3  # inches that the words below a part need


@dataclass
class _Canvas:
    """Axes in inches, and the place along them that drawing has come to."""

    axes: Any
    middle: float
    x: float = 0.0

    def bar(self, width: float, height: float, colour: str, strength: float = 1.0) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Rectangle

        mixed = tuple(1 - strength * (1 - part) for part in to_rgb(colour))  # with white: no line shines through
        box = Rectangle((self.x, self.middle - height / 2), width, height, facecolor=mixed, linewidth=0)
        self.axes.add_patch(box)
        self.x += width

    def arc(self, start: float, end: float, base: float, projection: bool) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        rise = min(0.42, 0.12 + 0.5 * (end - start))
        points = [(start, base), (start, base + rise), (end, base + rise), (end, base)]
        curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
        colour, width = (_PROJECTION, 1.8) if projection else (_IDENTITY, 1.0)
        self.axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, capstyle="round"))

    def words(self, x: float, title: str, lines: str, y: float) -> None:
        self.axes.text(x, y, title, ha="center", va="top", fontsize=9, fontweight="bold", color=_INK)
        self.axes.text(x, y - 0.2, lines, ha="center", va="top", fontsize=8, color="#475569", linespacing=1.35)


def check_drawable(path: Path) -> None:
    """Raise `ResiduumError` for another ending than SVG's or PNG's, or for a folder that is not there."""
    if path.suffix.lower() not in FORMATS:
        raise ResiduumError(f"{path} does not end in {' or '.join(FORMATS)}; a drawing is one of these")
    if not path.absolute().parent.is_dir():
        raise ResiduumError(f"the folder of {path} does not exist; make it first, or draw elsewhere")


def draw(config: ResNetConfig, path: Path, *, name: str, figures: str, size: tuple[int, int] = (224, 224)) -> None:
    """Draw a network for images of `size` pixels into an SVG or PNG file; `figures` stands behind the name.

    Raises `ResiduumError` for another ending or a file that cannot be written.
    """
    check_drawable(path)
    from matplotlib.figure import Figure

    blocks = sum(config.depths)
    unit = min(0.5, max(0.13, 11 / blocks))  # inches for a block and the gap after it
    widths = [max(_LABEL, unit * depth) for depth in config.depths]
    total = 2 * _LABEL + sum(widths) + 0.35 * (len(widths) + 1) + 0.5
    figure = Figure(figsize=(total, 4.55))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, total)
    axes.set_ylim(-0.25, 4.3)
    axes.set_axis_off()
    axes.text(0.3, 4.12, name, ha="left", va="top", fontsize=14, fontweight="bold", color=_INK)
    axes.text(0.3, 3.83, figures, ha="left", va="top", fontsize=9, color="#475569")
    key = "dark: 3x3, light: 1x1\ngrey arc: identity shortcut, orange arc: shortcut that changes the shape"
    axes.text(0.3, 0.12, key, ha="left", va="top", fontsize=7, color="#64748b", linespacing=1.4)
    canvas = _Canvas(axes, middle=2.1, x=0.3)
    axes.plot([0.3, total - 0.3], [canvas.middle] * 2, color="#e2e8f0", linewidth=1, zorder=0)

    largest = max(size)
    side = -(-largest // (1 if config.stem == "conv3" else 2))
    left = canvas.x
    canvas.x += (_LABEL - sum(_thick(c) + _GAP for c in config.stem_channels) - 0.06) / 2
    for channels in config.stem_channels:
        canvas.bar(_thick(channels), _tall(side, largest), _STEM)
        canvas.x += _GAP
    if config.stem_pool != "none":
        side = -(-side // 2)
        canvas.bar(0.06, _tall(side, largest), _STEM, 0.45)
    pool = {"max": "max pool", "conv": "strided conv", "none": "no pool"}[config.stem_pool]
    stem = {"conv7": "7x7", "deep": "three 3x3", "tiered": "three 3x3, tiered", "conv3": "3x3"}[config.stem]
    canvas.words(left + _LABEL / 2, "stem", f"{stem}\n{pool}\n{config.stem_channels[-1]} channels", 0.95)
    canvas.x = left + _LABEL

    for number, (plan, width) in enumerate(zip(config.stages, widths, strict=True)):
        canvas.x += 0.35
        left, colour = canvas.x, _STAGES[number % len(_STAGES)]
        canvas.x += (width - unit * len(plan.blocks)) / 2
        height = _tall(largest / plan.stride, largest)
        for block in plan.blocks:
            _block(canvas, block, unit, height, colour)
        shape = " x ".join(str(-(-s // plan.stride)) for s in size)
        kind = f"{len(plan.blocks)} {plan.blocks[0].kind}" + (" blocks" if len(plan.blocks) > 1 else " block")
        canvas.words(left + width / 2, f"layer{number + 1}", f"{kind}\n{plan.channels} channels\n{shape}", 0.95)
        canvas.x = left + width
    canvas.x += 0.35
    left = canvas.x
    canvas.x += 0.5
    canvas.bar(0.06, 0.35, _HEAD, 0.45)
    canvas.x += 0.08
    if config.num_classes:
        canvas.bar(0.12, 0.9, _HEAD)
    classes = f"{config.num_classes} classes" if config.num_classes else f"{config.num_features} features"
    canvas.words(left + _LABEL / 2, "head", f"average pool\n{classes}", 0.95)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=140), ResiduumError)


def _block(canvas: _Canvas, plan: BlockPlan, unit: float, height: float, colour: str) -> None:
    """The convolutions of one block side by side, its shortcut above them."""
    channels = [plan.width, plan.out_channels] if plan.kind == "basic" else [plan.width, plan.width, plan.out_channels]
    thick = [_thick(c) for c in channels]
    start, gap = canvas.x, 0.03 * unit
    room = 0.75 * unit - gap * (len(thick) - 1)
    for i, part in enumerate(thick):
        canvas.x += gap if i else 0.0
        is_3x3 = plan.kind == "basic" or i == 1
        canvas.bar(room * part / sum(thick), height, colour, 1.0 if is_3x3 else 0.4)
    canvas.arc(start, canvas.x, canvas.middle + height / 2 + 0.04, plan.reshapes)
    canvas.x = start + unit


def _tall(side: float, largest: int) -> float:
    """Inches for an image side: the square root, so that the last stage is still seen."""
    return 2.1 * math.sqrt(side / largest)


def _thick(channels: int) -> float:
    """Inches for so many channels: the logarithm, for the same reason."""
    return 0.05 * math.log2(max(channels, 2))
