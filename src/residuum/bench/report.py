"""A comparison for people: tables in a terminal, Markdown for a README, one self-contained page with charts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.code_size.changes import CHANGES
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from residuum.bench.results import CellResult, Difference, Lines, Report, Row
from residuum.errors import BenchError
from residuum.files import write_text

_COLOURS = {
    "brute_force": "#94a3b8", "torchvision": "#c2410c", "timm": "#7c3aed", "transformers": "#ca8a04",
    "residuum": "#2563eb",
}  # fmt: skip
_STYLES = {"faster": "green", "slower": "red"}


@dataclass(frozen=True)
class Sheet:
    """A table before it is dressed: the first column names, the others are figures."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    wide: tuple[str, ...] = ()  # headings of columns that a narrow terminal does without


def sheets(report: Report) -> Iterator[Sheet]:
    """All tables of a report: everything at a glance, each cell, the lines."""
    if report.cells:
        yield _glance(report)
    for cell in report.cells:
        yield _cell(cell, report.baseline)
    if report.lines:
        yield from lines_sheets(report.lines)


def lines_sheets(lines: Sequence[Lines]) -> Iterator[Sheet]:
    """The lines that define each contender's network, and those to change."""
    yield _lines(lines)
    yield _changes(lines)


def _glance(report: Report) -> Sheet:
    names = list(dict.fromkeys(row.contender for cell in report.cells for row in cell.rows))
    counted = {line.count.contender: line for line in report.lines}
    headings = ["contender", *(["lines", "lines to change"] if counted else [])]
    common, labels = _labels(report.cells)
    headings += [label.replace(", ", "\n") for label in labels]
    rows = []
    for name in names:
        line = counted.get(name)
        row = [name] + (
            [str(line.count.file), str(sum(line.changes.values()))] if line else [""] * (2 if counted else 0)
        )
        for cell in report.cells:
            mine, base = cell.row(name), cell.row(report.baseline)
            row.append("" if mine is None or base is None else f"{base.step / mine.step:.0%}")
        rows.append(tuple(row))
    note = f"Speed in images/s as a share of {report.baseline}'s, of medians."
    if counted:
        note += " Lines define the network, in its own files; lines to change are of ten modifications together."
    return Sheet(f"At a glance: {common}", tuple(headings), tuple(rows), note)


def _labels(cells: Sequence[CellResult]) -> tuple[str, list[str]]:
    """What all cells have in common, and what tells each of them from the others."""
    fields = ("model", "task", "precision", "layout", "mode")
    parts = [[*(str(cell.settings[f]) for f in fields), f"batch {cell.batch}"] for cell in cells]
    same = [len({words[i] for words in parts}) == 1 for i in range(len(parts[0]))]
    common = " ".join(word for word, shared in zip(parts[0], same, strict=True) if shared)
    own = [", ".join(word for word, shared in zip(words, same, strict=True) if not shared) for words in parts]
    return common, [label or cell.name for label, cell in zip(own, cells, strict=True)]


def _cell(cell: CellResult, baseline: str) -> Sheet:
    headings = (
        "contender", "images/s", "step, ms", "quartiles", "ratio", "interval", "", "peak, MiB", "growth, MiB",
        "of limit",
    )  # fmt: skip
    rows = tuple(_figures(cell, row, baseline) for row in cell.rows)
    used = dict.fromkeys(row.precision for row in cell.measured())
    limits = " and ".join(f"{cell.limit(precision) / 1e9:,.0f} GFLOP/s in {precision}" for precision in used)
    note = (
        f"The ratio is to {baseline}'s speed, with its interval of 95 %. The limit is a large matrix product's "
        f"{limits}; a step is {cell.flops / 1e9:,.1f} GFLOP."
    )
    left_out = [f"{row.contender} left out: {row.error}." for row in cell.rows if row.error]
    return Sheet(cell.name, headings, rows, " ".join([note, *left_out]), wide=("step, ms", "quartiles", "growth, MiB"))


def _figures(cell: CellResult, row: Row, baseline: str) -> tuple[str, ...]:
    if not row.times:
        return (row.contender, *["-"] * 9)
    ratio = cell.ratio(row, baseline)
    compared = (f"{ratio.value:.3f}", f"{ratio.low:.3f}-{ratio.high:.3f}", ratio.verdict) if ratio else ("", "", "")
    low, high = row.quartiles
    return (
        row.contender,
        f"{cell.speed(row):.1f}",
        f"{1000 * row.step:.1f}",
        f"{1000 * low:.1f} to {1000 * high:.1f}",
        *compared,
        _mebibytes(row.peak),
        _mebibytes(row.grown),
        f"{cell.share(row):.0%}",
    )


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"


def _lines(lines: Sequence[Lines]) -> Sheet:
    rows = tuple(
        (c.contender, *(f"{n:,}" for n in (c.file, c.all, c.whole_file, c.whole_all, c.files)))
        for c in (line.count for line in lines)
    )
    headings = ("contender", "in its own files", "with all it needs", "its files, whole", "all files, whole", "files")
    note = (
        "Lines of code that define ResNet-50, without blank lines, comments and docstrings: what is reached by name "
        "from the call that makes the network, within the contender's own library. Ours are of the whole family."
    )
    return Sheet("Lines", headings, rows, note)


def _changes(lines: Sequence[Lines]) -> Sheet:
    rows = [(title, *(str(line.changes[name]) for line in lines)) for name, title in CHANGES]
    rows.append(("all together", *(str(sum(line.changes.values())) for line in lines)))
    headings = ("modification of ResNet-50", *(line.count.contender for line in lines))
    return Sheet("Lines to change", headings, tuple(rows))


def print_report(console: Console, report: Report) -> None:
    """All tables."""
    for sheet in sheets(report):
        print_sheet(console, sheet)


def print_sheet(console: Console, sheet: Sheet) -> None:
    """One table, its note below."""
    table = Table(title=sheet.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = [i for i, heading in enumerate(sheet.headings) if console.width >= 110 or heading not in sheet.wide]
    for place in shown:
        table.add_column(sheet.headings[place], justify="right" if place else "left", no_wrap=not place)
    for row in sheet.rows:
        table.add_row(*(_styled(row[place]) for place in shown))
    console.print(table)
    if sheet.note:
        console.print(sheet.note, style="dim", highlight=False, markup=False)
    console.print()


def _styled(value: str) -> str:
    return f"[{_STYLES[value]}]{value}[/]" if value in _STYLES else value


def comparison(differences: Sequence[Difference]) -> Sheet:
    """What became of each contender from one report to another."""
    rows = []
    for d in differences:
        interval = f"{d.ratio.low:.3f}-{d.ratio.high:.3f}"
        speeds = f"{d.before:.1f}", f"{d.after:.1f}"
        rows.append(
            (d.cell, d.contender, *speeds, f"{d.ratio.value:.3f}", interval, f"{d.machine.value:.3f}", d.verdict)
        )
    headings = ("cell", "contender", "before, images/s", "after", "ratio", "interval", "machine's own", "")
    note = "The machine's own is the ratio of the matrix product's speed, measured in the same rounds."
    return Sheet("Second report against first", headings, tuple(rows), note)


def in_words(differences: Sequence[Difference]) -> str:
    """The upshot of a comparison in a sentence."""
    slower = [f"{d.contender} in {d.cell} ({d.ratio.value - 1:+.1%})" for d in differences if d.verdict == "slower"]
    if slower:
        return f"Slower by more than noise: {'; '.join(slower)}."
    return "Nothing got slower by more than noise and than the machine itself."


def _about(report: Report) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items() if value)
    return f"Measured on {report.date} with `{report.command}`: {machine}."


def markdown(report: Report) -> str:
    """The tables for a README."""
    parts = [_about(report)]
    for sheet in sheets(report):
        lines = [f"### {sheet.title}", ""]
        lines.append("| " + " | ".join(heading.replace("\n", " ") for heading in sheet.headings) + " |")
        lines.append("| --- |" + " ---: |" * (len(sheet.headings) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in sheet.rows]
        parts.append("\n".join(lines))
        if sheet.note:
            parts.append(sheet.note)
    return "\n\n".join(parts) + "\n"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#0f172a;background:#f8fafc;margin:0}
main{max-width:1100px;margin:0 auto;padding:2rem 1.5rem 4rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
.about,.note{color:#64748b;font-size:.85rem}
.card{background:#fff;border:1px solid #e2e8f0;border-radius:10px;padding:1rem 1.2rem;margin:.6rem 0;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.86rem}
th,td{text-align:right;padding:.35rem .55rem;border-bottom:1px solid #e2e8f0;white-space:nowrap}
th{color:#475569;font-weight:600;white-space:pre-line;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}tr:last-child td{border-bottom:0}
.faster{color:#15803d;font-weight:600}.slower{color:#b91c1c;font-weight:600}
svg{max-width:100%;height:auto}code{background:#f1f5f9;border-radius:4px;padding:.1rem .3rem}
"""


def page(report: Report) -> str:
    """One HTML page that needs nothing else, charts included."""
    charts = {
        "Speed": _svg(_speed_chart(report)) if report.cells else "",
        "Speed and memory": _svg(_frontier_chart(report)) if _trained(report) else "",
        "Lines of code": _svg(_lines_chart(report)) if report.lines else "",
    }
    machine = " · ".join(f"{escape(k)} {escape(str(v))}" for k, v in report.machine.items() if v)
    body = [
        "<h1>Residual networks compared</h1>",
        f'<p class="about">{escape(report.date)} · <code>{escape(report.command)}</code><br>{machine}</p>',
        *(f'<h2>{title}</h2><div class="card">{chart}</div>' for title, chart in charts.items() if chart),
        *(_html_table(sheet) for sheet in sheets(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Residual networks compared</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _html_table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in sheet.headings)
    rows = "".join("<tr>" + "".join(_html_value(value) for value in row) + "</tr>" for row in sheet.rows)
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return f'<h2>{escape(sheet.title)}</h2><div class="card"><table><tr>{head}</tr>{rows}</table>{note}</div>\n'


def _html_value(value: str) -> str:
    return f'<td class="{value}">{value}</td>' if value in _STYLES else f"<td>{escape(value)}</td>"


def _colour(contender: str) -> str:
    return _COLOURS[contender.partition(":")[0]]


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    file = StringIO()
    with rc_context({"svg.hashsalt": "residuum"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _axes(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _panels(count: int, height: float, alone: float) -> tuple[Any, list[Any]]:
    """A figure, and axes for so many panels of a height in inches, two in a row or one of a width."""
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(10 if columns > 1 else alone, rows * height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _speed_chart(report: Report) -> Any:
    """Speed over the baseline's, a panel for each cell, with the interval."""
    most = max(len(cell.rows) for cell in report.cells)
    figure, panels = _panels(len(report.cells), 0.8 + 0.27 * most, alone=10)
    for axes, cell in zip(panels, report.cells, strict=True):
        shown = [(row, cell.ratio(row, report.baseline)) for row in reversed(cell.measured())]
        values = [ratio.value if ratio else 1.0 for _, ratio in shown]
        axes.barh([row.contender for row, _ in shown], values, color=[_colour(row.contender) for row, _ in shown])
        for place, (row, ratio) in enumerate(shown):
            if ratio:
                axes.plot([ratio.low, ratio.high], [place, place], color="#0f172a", linewidth=1.6)
            end = ratio.high if ratio else 1.0
            axes.text(end, place, f"  {cell.speed(row):.1f} images/s", va="center", fontsize=7.5)
        axes.axvline(1, color="#0f172a", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.3 * max([*values, 1.0]))
        axes.set_xlabel(f"speed, {report.baseline}'s is 1", fontsize=8)
        _axes(axes, cell.name)
    return figure


def _trained(report: Report) -> list[CellResult]:
    return [c for c in report.cells if c.settings["task"] == "train" and any(r.peak is not None for r in c.measured())]


def _frontier_chart(report: Report) -> Any:
    """Images/s against peak memory, a panel for each training cell: up and to the left is better."""
    cells = _trained(report)
    figure, panels = _panels(len(cells), 3.4, alone=6)
    for axes, cell in zip(panels, cells, strict=True):
        for row in cell.measured():
            if row.peak is not None:
                axes.scatter(row.peak / 2**20, cell.speed(row), color=_colour(row.contender), s=42)
                place = (row.peak / 2**20, cell.speed(row))
                axes.annotate(row.contender, place, xytext=(6, 4), textcoords="offset points", fontsize=7.5)
        axes.set_xlabel("peak of a step's tensors, MiB", fontsize=8)
        axes.set_ylabel("images/s", fontsize=8)
        axes.set_xlim(0, 1.35 * max(row.peak or 0 for row in cell.measured()) / 2**20)
        axes.set_ylim(0, 1.2 * max(cell.speed(row) for row in cell.measured()))
        axes.grid(alpha=0.25)
        _axes(axes, cell.name)
    return figure


def _lines_chart(report: Report) -> Any:
    """Lines that define the network, and lines to change for all modifications together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.8 + 0.4 * len(report.lines)), layout="constrained")
    panels = figure.subplots(1, 2)
    shown = list(reversed(report.lines))
    names = [line.count.contender for line in shown]
    colours = [_colour(name) for name in names]
    whole, used = ([getattr(line.count, part) for line in shown] for part in ("whole_file", "file"))
    panels[0].barh(names, whole, color=colours, alpha=0.3)
    bars = panels[0].barh(names, used, color=colours)
    panels[0].bar_label(bars, [f"{a} of {b}" for a, b in zip(used, whole, strict=True)], padding=4, fontsize=8)
    _axes(panels[0], "lines that define ResNet-50, of all in the files that define it")
    bars = panels[1].barh(names, [sum(line.changes.values()) for line in shown], color=colours)
    panels[1].bar_label(bars, padding=4, fontsize=8)
    panels[1].margins(x=0.15)
    _axes(panels[1], "lines to change, ten modifications together")
    return figure


def save_report(report: Report, folder: Path) -> None:
    """Write `report.json`, `report.md` and `report.html` into a folder; raises `BenchError` where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"the folder {folder} cannot be made: {error.strerror}; choose another --out") from None
    report.save(folder / "report.json")
    write_text(folder / "report.md", markdown(report), BenchError)
    write_text(folder / "report.html", page(report), BenchError)
