"""A picture of a network, stage by stage from top to bottom: convolutions are bars, shortcuts arcs, the rest marks.

Bars are as tall as the image is there and as thick as there are channels. What the picture shows comes from
`config.stages`, and what has no mark stands in words: no two configs that compute differently look alike.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residuum.config import BlockPlan, ResNetConfig, StagePlan
from residuum.errors import ResiduumError, quoted, shortened
from residuum.files import write_text, write_whole

FORMATS = (".svg", ".png")
# Each colour on a light page, and what stands for it on a dark one.
_CARD, _EDGE, _INK, _QUIET, _THREAD = "#f8fafc", "#cbd5e1", "#1e293b", "#475569", "#e2e8f0"
_PLAIN, _IDENTITY, _PROJECTION = "#64748b", "#94a3b8", "#ea580c"
_STAGES = ("#0d9488", "#2563eb", "#7c3aed", "#be185d", "#b45309")
_DARK = {
    _CARD: "#0f172a", _EDGE: "#334155", _INK: "#e2e8f0", _QUIET: "#a3b1c6", _THREAD: "#1e293b", _PLAIN: "#8595ad",
    _IDENTITY: "#7c8ba1", _PROJECTION: "#fb923c", "#0d9488": "#2dd4bf", "#2563eb": "#60a5fa", "#7c3aed": "#a78bfa",
    "#be185d": "#f472b6", "#b45309": "#f59e0b",
}  # fmt: skip
_LIGHT_SHARE = 0.38  # of its colour that a light bar has
# Inches.
_WIDTH, _MARGIN, _BARS = 6.0, 0.3, 2.4  # of the picture; around it; where bars begin
_ROOM = _WIDTH - _MARGIN - _BARS
_TALLEST, _RISE, _MARK, _LINE = 0.95, 0.24, 0.1, 0.19  # of a bar; of an arc; below a bar; of text
_IN_A_ROW, _DRAWN = 20, 120  # blocks, of a stage


def traits(config: ResNetConfig) -> list[str]:
    """What sets a network apart from a ResNet of its depths and widths, in words, each a few of them."""
    usual = ResNetConfig()
    dilated = config.stages[-1].blocks[-1].dilation
    rate, ratio = config.stochastic_depth, config.attention_ratio
    squeeze = "squeeze-and-excitation" + (f" of ratio {ratio:g}" if ratio != usual.attention_ratio else "")
    found = {
        f"width x {config.width:g}": config.width != 1,
        "pre-activation blocks": config.preact,
        f"3x3 in {config.groups} groups": config.groups > 1,
        f"{config.width_per_group} channels a group": (config.groups, config.width_per_group) != (1, 64),
        f"first convolutions with 1/{config.reduce_first} of the channels": config.reduce_first > 1,
        squeeze: config.attention == "se",
        "efficient channel attention": config.attention == "eca",
        {"blur": "blur", "avg": "average", "none": ""}[config.antialias] + " filters before subsampling": (
            config.antialias != "none"
        ),
        "group norm": config.norm == "group",
        "standardised weights": config.weight_standardization,
        f"{config.activation} activation": config.activation != "relu",
        "stride in the first 1x1": config.stride_on == "1x1",
        "stride in the first stage": config.first_stride > 1,
        f"dilation up to {dilated} in place of strides": dilated > 1,
        f"branches dropped at up to {100 * rate:g} % ({config.stochastic_depth_mode})": rate > 0,
        f"dropout {100 * config.dropout:g} %": config.dropout > 0,
    }
    return [words for words, there in found.items() if there]


def check_drawable(path: Path) -> None:
    """Raise `ResiduumError` for another ending than SVG's or PNG's, or for a folder that is not there."""
    if path.suffix.lower() not in FORMATS:
        raise ResiduumError(f"{quoted(str(path))} does not end in {' or '.join(FORMATS)}; a drawing is one of these")
    try:
        there = path.absolute().parent.is_dir()
    except (OSError, ValueError):  # longer than the system's names, or with a character that it has not
        there = False
    if not there:
        raise ResiduumError(f"the folder of {quoted(str(path))} does not exist; make it first, or draw elsewhere")


def draw(
    config: ResNetConfig, path: Path, *, name: str, figures: str, image_size: tuple[int, int] = (224, 224)
) -> None:
    """Draw a network for images of `image_size` (height, width) into an SVG or PNG file; `figures` stands below `name`.

    The same arguments give the same bytes. An SVG has text that can be searched and read aloud, and colours for light
    and dark pages. Raises `ResiduumError` for another ending or a file that cannot be written.
    """
    check_drawable(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    name, figures = shortened(name, 60), shortened(figures, 200)
    rows = [_stem(config, image_size), *_stages(config, image_size), _head(config)]
    legend = list(_legend(config))
    above = textwrap.wrap(figures, 65) + textwrap.wrap(", ".join(traits(config)), 65)
    top = 0.8 + _LINE * len(above)
    height = top + sum(row.height for row in rows) + 0.25 + 0.23 * len(legend) + _MARGIN
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts may have it
        mpl.rcdefaults()
        mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "residuum", "text.parse_math": False}
        mpl.rcParams["font.sans-serif"] = ["DejaVu Sans", "Verdana", "Arial"]
        figure = Figure(figsize=(_WIDTH, height))
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, _WIDTH)
        axes.set_ylim(height, 0)  # downwards, as one reads
        axes.set_axis_off()
        _card(axes, height)
        _write(axes, _MARGIN, 0.52, name, size=17, bold=True)
        for number, line in enumerate(above):
            _write(axes, _MARGIN, 0.83 + _LINE * number, line, colour=_QUIET)
        y = top
        for row in rows:
            row.draw(axes, y)
            y += row.height
        for number, (sample, words) in enumerate(legend):
            _sample(axes, y + 0.35 + 0.23 * number, sample)
            _write(axes, _MARGIN + 0.45, y + 0.35 + 0.23 * number, words, colour=_QUIET, middle=True)
        if path.suffix.lower() == ".png":
            write_whole(path, lambda partial: figure.savefig(partial, dpi=160), ResiduumError)
            return
        written = io.StringIO()
        metadata = {"Title": name, "Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(written, format="svg", metadata=metadata)
    write_text(path, _accessible(written.getvalue(), f"{_describe(config)} {figures}"), ResiduumError)


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bar:
    """A convolution or another layer: its channels, a colour, and whether it is light, in groups, dilated."""

    channels: int
    colour: str
    light: bool = False
    groups: int = 1
    dilated: bool = False


@dataclass(frozen=True)
class _Piece:
    """What stands side by side under one arc, if it has one; and the marks below it."""

    bars: tuple[_Bar, ...]
    arc: str | None = None
    first_norm: bool = False
    mark: str = ""  # of attention
    filtered: bool = False


@dataclass(frozen=True)
class _Row:
    """A stem, stage or head: a title, lines of words, and pieces for an image as tall as `bar` inches."""

    title: str
    lines: tuple[str, ...]
    colour: str
    pieces: tuple[_Piece, ...]
    bar: float
    more: int = 0  # blocks that are not drawn

    @property
    def tracks(self) -> list[tuple[_Piece, ...]]:
        count = -(-len(self.pieces) // -(-len(self.pieces) // _IN_A_ROW))  # alike long
        return [self.pieces[i : i + count] for i in range(0, len(self.pieces), count)]

    @property
    def height(self) -> float:
        words = 0.32 + _LINE * (len(self.lines) + bool(self.more))
        return max(words, len(self.tracks) * self._track) + 0.12

    @property
    def _track(self) -> float:
        return self.bar + _RISE + 2 * _MARK

    def draw(self, axes: Any, y: float) -> None:
        _write(axes, _MARGIN, y + 0.2, self.title, size=12.5, bold=True, colour=self.colour)
        more = (f"and {self.more} more blocks",) if self.more else ()
        for number, line in enumerate(self.lines + more):
            _write(axes, _MARGIN, y + 0.4 + _LINE * number, line, colour=_QUIET)
        unit = min(0.5, _ROOM / len(self.tracks[0]))
        for number, pieces in enumerate(self.tracks):
            middle = y + number * self._track + _RISE + 0.06 + self.bar / 2
            axes.plot(
                [_BARS - 0.08, _BARS + _ROOM], [middle, middle], color=_THREAD, linewidth=1, zorder=0, clip_on=False
            )
            for i, piece in enumerate(pieces):
                _piece(axes, piece, _BARS + i * unit, middle, unit, self.bar)


def _stem(config: ResNetConfig, image_size: tuple[int, int]) -> _Row:
    convolutions = {
        "conv7": "7x7, stride 2", "deep": "three 3x3, stride 2", "tiered": "three wider 3x3, stride 2",
        "conv3": "3x3",
    }  # fmt: skip
    pools = {
        "max": "max pool, stride 2", "max0": "max pool, zero edges", "conv": "3x3 for a pool",
        "none": "no pool",
    }  # fmt: skip
    bars = [_Bar(channels, _PLAIN) for channels in config.stem_channels]
    if config.stem_pool != "none":
        bars.append(_Bar(config.stem_channels[-1], _PLAIN, light=config.stem_pool != "conv"))
    filtered = config.antialias != "none" and config.stem_pool in ("max", "conv")
    lines = (
        f"{_count(config.in_channels, 'channel')} in, {config.stem_channels[-1]} out",
        convolutions[config.stem],
        pools[config.stem_pool],
        _size(image_size, config.stem_stride),
    )
    tall = _tall(1 if config.stem == "conv3" else 2)
    return _Row("stem", lines, _PLAIN, (_Piece(tuple(bars), filtered=filtered),), tall)


def _stages(config: ResNetConfig, image_size: tuple[int, int]) -> Iterator[_Row]:
    for number, stage in enumerate(config.stages):
        colour = _STAGES[number % len(_STAGES)]
        blocks = stage.blocks
        dilation = (f"dilation {blocks[-1].dilation}",) if blocks[-1].dilation > 1 else ()
        lines = (
            _count(len(blocks), f"{blocks[0].kind} block"),
            f"{stage.channels} channels",
            _size(image_size, stage.stride),
            *dilation,
        )
        pieces = tuple(_block(config, block, colour) for block in blocks[:_DRAWN])
        yield _Row(f"layer{number + 1}", lines, colour, pieces, _tall(stage.stride), max(0, len(blocks) - _DRAWN))


def _block(config: ResNetConfig, plan: BlockPlan, colour: str) -> _Piece:
    bars = [
        _Bar(plan.first_width, colour, light=True),
        _Bar(plan.width, colour, groups=config.groups, dilated=plan.first_dilation > 1),
        _Bar(plan.out_channels, colour, light=True),
    ]
    if plan.kind == "basic":
        bars = [
            _Bar(plan.first_width, colour, dilated=plan.first_dilation > 1),
            _Bar(plan.out_channels, colour, dilated=plan.dilation > 1),
        ]
    return _Piece(
        tuple(bars),
        _PROJECTION if plan.reshapes else _IDENTITY,
        config.preact,
        {"none": "", "se": "dot", "eca": "ring"}[config.attention],
        config.antialias != "none" and (plan.stride > 1 or plan.first_dilation != plan.dilation),
    )


def _head(config: ResNetConfig) -> _Row:
    bars = [_Bar(config.num_features, _PLAIN, light=True)]
    bars += [_Bar(config.num_classes, _PLAIN)] if config.num_classes else []
    classes = _count(config.num_classes, "class", "classes")
    out = classes if config.num_classes else f"{config.num_features} features"
    first = ("norm, activation",) if config.preact else ()
    piece = _Piece(tuple(bars), first_norm=config.preact)
    return _Row("head", (*first, "average pool", out), _PLAIN, (piece,), 0.3)


def _legend(config: ResNetConfig) -> Iterator[tuple[_Piece, str]]:
    """A sample of each mark that occurs, and what it means."""
    plans: list[BlockPlan] = [block for stage in config.stages for block in stage.blocks]
    colour = _STAGES[0]
    shortcuts = {
        "conv": f"{config.downsample_kernel}x{config.downsample_kernel} convolution",
        "avg": "average pool, then 1x1 convolution",
        "pad": "pixels left out, channels of zeros added",
    }
    yield _Piece((_Bar(64, colour),)), "3x3 convolution"
    if any(plan.kind == "bottleneck" for plan in plans):
        yield _Piece((_Bar(64, colour, light=True),)), "1x1 convolution"
    if config.groups > 1:
        yield _Piece((_Bar(64, colour, groups=4),)), f"3x3 convolution in {config.groups} groups"
    if any(max(plan.dilation, plan.first_dilation) > 1 for plan in plans):
        yield _Piece((_Bar(64, colour, dilated=True),)), "dilated 3x3 convolution"
    if not all(plan.reshapes for plan in plans):
        yield _Piece((), _IDENTITY), "identity shortcut"
    if any(plan.reshapes for plan in plans):
        yield _Piece((), _PROJECTION), f"shortcut that changes the shape: {shortcuts[config.downsample]}"
    if config.preact:
        yield _Piece((), first_norm=True), "norm and activation come before the convolutions"
    if config.attention == "se":
        yield _Piece((), mark="dot"), "squeeze-and-excitation"
    if config.attention == "eca":
        yield _Piece((), mark="ring"), "efficient channel attention"
    if config.antialias != "none":
        yield _Piece((), filtered=True), f"{'blur' if config.antialias == 'blur' else 'average'} filter that subsamples"


def _describe(config: ResNetConfig) -> str:
    """The picture in a sentence or two, for those who hear it."""

    def words(stage: StagePlan) -> str:
        return f"{_count(len(stage.blocks), f'{stage.blocks[0].kind} block')} of {stage.channels} channels"

    apart = traits(config)
    described = f"A residual network of depth {config.depth}: a stem, then {', '.join(map(words, config.stages[:20]))}."
    return described + (f" It has {', '.join(apart)}." if apart else "")


# -- on the canvas -----------------------------------------------------------------------------------------------------


def _piece(axes: Any, piece: _Piece, x: float, middle: float, unit: float, tall: float) -> None:
    """Bars side by side from x on, within `unit` inches, and what stands above and below them."""
    from matplotlib.patches import Circle, Polygon

    top, bottom, start = middle - tall / 2, middle + tall / 2, x
    free = piece.arc is None  # a stem's or head's bars are as thick as a lone block's
    room, gap = (0.1 * len(piece.bars), 0.03) if free else (0.74 * unit, 0.03 * unit)
    weights = [math.log2(max(bar.channels, 2)) for bar in piece.bars]
    if piece.first_norm:
        _boxes(axes, [(x, top, min(0.022, 0.1 * unit), tall)], _INK)
        x += 0.02 + gap
        room -= 0 if free else 0.02 + gap
    for bar, weight in zip(piece.bars, weights, strict=True):
        width = (room - gap * (len(weights) - 1)) * weight / sum(weights)
        _bar(axes, bar, x, top, width, tall)
        x += width + gap
    end = x - gap
    if piece.arc is not None:
        _arc(axes, start, end, top - 0.04, piece.arc)
    below, radius = bottom + 0.07, min(0.035, 0.2 * unit)
    if piece.mark:
        fill = {"facecolor": _INK} if piece.mark == "dot" else {"facecolor": "none"}
        axes.add_patch(Circle((end - radius, below), radius, edgecolor=_INK, linewidth=0.8, clip_on=False, **fill))
    if piece.filtered:
        place = end - radius if free else start + radius
        points = [(place - radius, below - radius), (place + radius, below - radius), (place, below + radius)]
        axes.add_patch(Polygon(points, facecolor=_PROJECTION, linewidth=0, clip_on=False))


def _bar(axes: Any, bar: _Bar, x: float, top: float, width: float, tall: float) -> None:
    """A rectangle, cut into its groups; with spots where it is dilated."""
    count = min(bar.groups, 6)
    part, gap = tall / count, 0.02 if count > 1 else 0
    cuts = [(x, top + i * part, width, part - gap * (i < count - 1)) for i in range(count)]
    _boxes(axes, cuts, _mixed(bar.colour, _CARD) if bar.light else bar.colour)
    if bar.dilated:
        side = min(0.5 * width, 0.16 * tall, 0.06)
        spots = [(x + (width - side) / 2, top + tall * y - side / 2, side, side) for y in (0.2, 0.5, 0.8)]
        _boxes(axes, spots, _CARD)


def _boxes(axes: Any, boxes: list[tuple[float, float, float, float]], colour: str) -> None:
    """Rectangles (left, top, width, height) as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    points = [p for x, y, w, h in boxes for p in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))]
    codes = [Curve.MOVETO, Curve.LINETO, Curve.LINETO, Curve.LINETO, Curve.CLOSEPOLY] * len(boxes)
    axes.add_patch(PathPatch(Curve(points, codes), facecolor=colour, linewidth=0, clip_on=False))


def _arc(axes: Any, start: float, end: float, base: float, colour: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    rise = min(_RISE, 0.1 + 0.4 * (end - start))
    points = [(start, base), (start, base - rise), (end, base - rise), (end, base)]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    width = 1.8 if colour == _PROJECTION else 1.0
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, capstyle="round", clip_on=False))


def _sample(axes: Any, y: float, piece: _Piece) -> None:
    """A mark of the legend, in place of the whole piece."""
    x, tall = _MARGIN + 0.08, 0.15
    if piece.arc is not None:
        _arc(axes, x, x + 0.22, y + 0.06, piece.arc)
    elif piece.bars:
        _bar(axes, piece.bars[0], x + 0.06, y - tall / 2, 0.1, tall)
    elif piece.first_norm:
        _piece(axes, piece, x + 0.11, y, 0.3, tall)
    else:
        _piece(axes, piece, x + 0.14, y - 0.07, 0.3, 0)


def _card(axes: Any, height: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.15"
    box = FancyBboxPatch(
        (0.05, 0.05), _WIDTH - 0.1, height - 0.1, boxstyle=style, facecolor=_CARD, edgecolor=_EDGE, linewidth=1
    )
    box.set_zorder(-1)
    axes.add_patch(box)


def _write(
    axes: Any,
    x: float,
    y: float,
    words: str,
    *,
    size: float = 11,
    bold: bool = False,
    colour: str = _INK,
    middle: bool = False,
) -> None:
    weight, align = "bold" if bold else "normal", "center_baseline" if middle else "baseline"
    axes.text(x, y, words, ha="left", va=align, fontsize=size, fontweight=weight, color=colour)


def _tall(stride: int) -> float:
    """Inches for an image at a stride: the square root, so that the last stage is still seen."""
    return max(_TALLEST / math.sqrt(stride), 0.14)


def _size(image_size: tuple[int, int], stride: int) -> str:
    height, width = (-(-side // stride) for side in image_size)
    return f"{height} x {width} pixels"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _mixed(colour: str, ground: str) -> str:
    """A colour that lets its ground shine through, opaque all the same: no line behind it is seen."""
    parts = zip(bytes.fromhex(colour[1:]), bytes.fromhex(ground[1:]), strict=True)
    return "#" + "".join(f"{round(_LIGHT_SHARE * c + (1 - _LIGHT_SHARE) * g):02x}" for c, g in parts)


def _accessible(svg: str, described: str) -> str:
    """Matplotlib's SVG with a description, a role, and other colours where the reader's page is dark."""
    from xml.sax.saxutils import escape

    swap = dict(_DARK)
    swap |= {_mixed(light, _CARD): _mixed(dark, _DARK[_CARD]) for light, dark in _DARK.items()}
    rules = "".join(
        f'[style*="fill: {light}"]{{fill:{dark}!important}}[style*="stroke: {light}"]{{stroke:{dark}!important}}'
        for light, dark in swap.items()
        if light in svg
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, end, body = svg.partition("</title>\n")
    head = head.replace("<svg ", '<svg role="img" ', 1)
    return f"{head}{end}<desc>{escape(described)}</desc>\n{style}\n{body}"
