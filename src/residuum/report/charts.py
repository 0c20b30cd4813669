"""Charts as SVG for a page: text stays text, lines take the page's colour, and a description says what is to be seen.

A chart is as wide as a phone. The page sets as many beside each other as there is room for.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from residuum.errors import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.75  # inches
LONGEST = 26  # characters of a name that are shown
# Told apart by people who do not see all colours, and on white as well as on black (after Okabe and Ito).
PALETTE = ("#0a7cc2", "#d55e00", "#0a9a73", "#cc79a7", "#b98300", "#56a3d9", "#7f7f7f", "#a45bd0")
GREY = "#808080"  # of lines that stand back
INK = "#010101"  # stands for the colour of the page's text
_FONT = 9.5
_SAID = 2000  # characters of a description


@dataclass(frozen=True)
class Bar:
    """A value, the interval around it where there is one, and what is written at the bar's right."""

    name: str
    value: float
    interval: tuple[float, float] | None
    label: str
    colour: str


@dataclass(frozen=True)
class Point:
    """A named place."""

    name: str
    x: float
    y: float
    colour: str


@dataclass(frozen=True)
class Line:
    """Places in order, joined; a line without a name stands back. Between the two ends of `band` it is shaded."""

    name: str
    places: Sequence[tuple[float, float]]
    colour: str
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing under its title; `description` says what is to be seen, for those who do not see it."""

    title: str
    description: str
    drawing: str  # an <svg> element

    def element(self, number: int) -> str:
        """The drawing for a page, its parts named after its number there, so that no other chart takes them."""
        name = f"chart{number}"
        text = re.sub(r'\bid="', f'id="{name}-', self.drawing)
        text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text)
        title = f'<title id="{name}-title">{escape(shortened(self.title, _SAID))}</title>'
        desc = f'<desc id="{name}-desc">{escape(shortened(self.description, _SAID))}</desc>'
        start, end = text.split(">", 1)
        return f'{start} role="img" aria-labelledby="{name}-title {name}-desc">{title}{desc}{end}'


def bar_chart(
    title: str, bars: Sequence[Bar], *, unit: str, labels: str, description: str, reference: float | None = None
) -> Chart:
    """Horizontal bars from 0, the first on top, with their intervals and a dotted line at `reference`.

    `unit` says what the bars' length is, `labels` what is written in the column at their right. An interval that
    reaches far beyond the bars is cut off at the edge, where an arrow says so.
    """
    with _drawing(0.75 + 0.3 * max(len(bars), 1)) as (figure, axes):
        places = range(len(bars))
        most = max([*(bar.value for bar in bars), reference or 0.0])
        ends = [bar.interval[1] for bar in bars if bar.interval]
        right = 1.05 * max([most, *(min(end, 1.6 * most) for end in ends)]) or 1.0
        axes.barh(places, [bar.value for bar in bars], height=0.62, color=[bar.colour for bar in bars], alpha=0.8)
        for place, bar in zip(places, bars, strict=True):
            if bar.interval:
                low, high = bar.interval
                axes.plot([low, min(high, right)], [place, place], color=INK, linewidth=1.4)
                if high > right:
                    axes.plot(right, place, ">", color=INK, markersize=5, clip_on=False, gid=f"beyond{place}")
            axes.annotate(
                bar.label, (1, place), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center",
            )  # fmt: skip
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=0.9, linestyle=":")
        axes.set_yticks(list(places), [_name(bar.name) for bar in bars])
        axes.set(xlim=(0, right), ylim=(len(bars) - 0.4, -0.6), xlabel=unit)
        axes.annotate(
            labels, (1, 1), (8, 5), xycoords="axes fraction", textcoords="offset points", color=GREY, size=_FONT - 1
        )
        axes.tick_params(axis="y", length=0)
        return Chart(title, description, _svg(figure))


def interval_chart(
    title: str, bars: Sequence[Bar], *, unit: str, labels: str, description: str, margin: float | None = None
) -> Chart:
    """A forest plot: values and their intervals around 0, the first on top; what is within the margin is shaded."""
    with _drawing(0.75 + 0.3 * max(len(bars), 1)) as (figure, axes):
        if margin:
            axes.axvspan(-margin, margin, color=GREY, alpha=0.18, linewidth=0, gid="margin")
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=":")
        for place, bar in enumerate(bars):
            if bar.interval:
                axes.plot(bar.interval, [place, place], color=bar.colour, linewidth=2)
            axes.plot(bar.value, place, "o", color=bar.colour, markersize=6)
            axes.annotate(
                bar.label, (1, place), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center",
            )  # fmt: skip
        axes.set_yticks(range(len(bars)), [_name(bar.name) for bar in bars])
        axes.set(ylim=(len(bars) - 0.4, -0.6), xlabel=unit)
        axes.annotate(
            labels, (1, 1), (8, 5), xycoords="axes fraction", textcoords="offset points", color=GREY, size=_FONT - 1
        )
        axes.tick_params(axis="y", length=0)
        return Chart(title, description, _svg(figure))


def paired_chart(
    title: str, names: Sequence[str], runs: Sequence[Sequence[float]], *, unit: str, description: str
) -> Chart:
    """A row a name, a point a run, and a line through the runs that belong together: `runs` has one of each name.

    A value that is no number is left out. The mean of each row is a bar across it.
    """
    with _drawing(0.75 + 0.34 * max(len(names), 1)) as (figure, axes):
        for run in runs:
            axes.plot(run, range(len(names)), color=GREY, linewidth=0.8, alpha=0.6)
            axes.plot(run, range(len(names)), "o", color=PALETTE[0], markersize=4, alpha=0.7, linestyle="")
        for place in range(len(names)):
            known = [run[place] for run in runs if run[place] == run[place]]
            if known:
                middle = sum(known) / len(known)
                axes.plot([middle, middle], [place - 0.3, place + 0.3], color=INK, linewidth=2)
        axes.set_yticks(range(len(names)), [_name(name) for name in names])
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=unit)
        axes.tick_params(axis="y", length=0)
        return Chart(title, description, _svg(figure))


def scatter_chart(
    title: str,
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    description: str,
    zero: bool = True,
    front: Sequence[str] = (),
) -> Chart:
    """Points, from 0 unless `zero` is false, with their names in a column at the right, one below the other.

    A dashed line joins those that `front` names.
    """
    with _drawing(2.9) as (figure, axes):
        (left, right), (low, top) = (_limits(one, zero) for one in ([p.x for p in points], [p.y for p in points]))
        axes.set(xlim=(left, right), ylim=(low, top), xlabel=x, ylabel=y)
        if not zero:
            axes.locator_params(axis="x", nbins=5)  # far from 0 they are long
        joined = sorted((p.x, p.y) for p in points if p.name in front)
        if joined:
            axes.plot(*zip(*joined, strict=True), color=GREY, linewidth=1.2, linestyle="--", gid="front")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.7)
        axes.set_axisbelow(True)
        gap = 0.075 * (top - low)  # a line of text
        leader: Any = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4, "relpos": (0, 0.5)}
        ordered = sorted(points, key=lambda p: p.y)
        heights = spread([p.y - low for p in ordered], gap, top - low)
        column = right + 0.03 * (right - left)
        for point, height in zip(ordered, heights, strict=True):
            axes.plot(point.x, point.y, "o", color=point.colour, markersize=6.5, alpha=0.85)
            axes.annotate(
                _name(point.name), (point.x, point.y), (column, low + height), va="center", annotation_clip=False,
                arrowprops=leader,
            )  # fmt: skip
        return Chart(title, description, _svg(figure))


def _limits(values: Sequence[float], zero: bool) -> tuple[float, float]:
    if zero:
        return 0, 1.1 * max(values)
    room = 0.15 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
    return min(values) - room, max(values) + room


def line_chart(
    title: str, lines: Sequence[Line], *, x: str, y: str, description: str, ticks: Sequence[str] = ()
) -> Chart:
    """Lines over x; their names, where they have one, in a column at the right, at the heights where they end.

    `ticks` name the places 0, 1, ... of x.
    """
    from matplotlib.ticker import MaxNLocator

    with _drawing(2.9) as (figure, axes):
        for line in lines:
            xs, ys = zip(*line.places, strict=True)
            thin = {"linewidth": 0.8, "alpha": 0.45} if not line.name else {"linewidth": 1.8, "alpha": 0.95}
            if line.band:
                lows, highs = zip(*line.band, strict=True)
                axes.fill_between(xs, lows, highs, color=line.colour, alpha=0.15, linewidth=0)
            axes.plot(xs, ys, color=line.colour, marker="o" if len(xs) == 1 else "", markersize=4, **thin)  # type: ignore[arg-type]
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ticks:
            axes.set_xticks(range(len(ticks)), [_name(tick) for tick in ticks])
        axes.grid(color=GREY, alpha=0.25, linewidth=0.7)
        axes.set_axisbelow(True)
        low, high = axes.get_ylim()
        named = sorted((line for line in lines if line.name), key=lambda line: line.places[-1][1])
        heights = spread([line.places[-1][1] - low for line in named], 0.075 * (high - low), high - low)
        for line, height in zip(named, heights, strict=True):
            axes.annotate(
                _name(line.name), (1, low + height), (8, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", color=line.colour, annotation_clip=False,
            )  # fmt: skip
        return Chart(title, description, _svg(figure))


def spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Places near ascending values, at least `gap` apart, between 0 and `top` where there is room for that."""
    gap = min(gap, top / max(len(values), 1))
    groups: list[list[float]] = []  # values that stand too near each other share their middle
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _lowest(groups[-1], gap) - _highest(groups[-2], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [_lowest(group, gap) + i * gap for group in groups for i in range(len(group))]
    for i in range(len(places)):
        places[i] = max(places[i], i * gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top - (len(places) - 1 - i) * gap)
    return places


def _lowest(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _highest(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2


def colours(names: Iterable[str], known: dict[str, str]) -> dict[str, str]:
    """A colour for each name: the one that is known, else the next of the palette that none of these has."""
    names = list(names)
    taken = {known[name] for name in names if name in known}
    free = [colour for colour in PALETTE if colour not in taken] or list(PALETTE)
    others = [name for name in dict.fromkeys(names) if name not in known]
    return {name: known[name] for name in names if name in known} | {
        name: free[i % len(free)] for i, name in enumerate(others)
    }


def _name(text: str) -> str:
    return shortened(text, LONGEST)


@contextmanager
def _drawing(height: float) -> Iterator[tuple["Figure", "Axes"]]:
    """A figure of a height in inches and its axes. Text is not read as mathematics; letters that matplotlib's font
    has not are the browser's business.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "residuum", "font.size": _FONT,
        "axes.labelsize": _FONT - 1, "xtick.labelsize": _FONT - 1, "ytick.labelsize": _FONT,
        "axes.linewidth": 0.7, "axes.labelcolor": GREY, "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        yield figure, axes


def _svg(figure: "Figure") -> str:
    """The drawing without size, background, date and font of its own; what is black takes the page's colour."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<defs>\s*<style[^<]*</style>\s*</defs>", r"<!--.*?-->"):
        text = re.sub(rf"{part}\s*", "", text, flags=re.DOTALL)  # the page has a style for all charts
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg xmlns:xlink="http://www.w3.org/1999/xlink" \1>', text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return text.replace("#000000", "currentColor").replace(INK, "currentColor")
