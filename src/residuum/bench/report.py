"""A comparison for people: tables for a terminal and a README, and a page with charts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from residuum.bench.intervals import LEAST_REPETITIONS, Ratio
from residuum.bench.results import Comparison, Difference, Row, WorkloadResult
from residuum.bench.workloads import TASKS
from residuum.errors import BenchError, shortened
from residuum.files import write_text
from residuum.report.charts import PALETTE, Bar, Chart, Point, bar_chart, colours, scatter_chart
from residuum.report.page import Card, Page, Section, html
from residuum.report.tables import Judged, Table, Value, Verdict, markdown, print_table

TITLE = "Residual networks compared"
_LIBRARIES = ("residuum", "torchvision", "timm", "transformers")
_OF_RATIO: dict[str, Verdict] = {"faster": "better", "slower": "worse"}


def tables(found: Comparison) -> Iterator[Table]:
    """All tables: every workload at a glance, then each by itself."""
    if found.workloads:
        yield glance(found)
    for workload in found.workloads:
        yield in_full(workload, found.baseline)


def _judged(ratio: Ratio, text: str) -> Judged:
    return Judged(text, _OF_RATIO.get(ratio.verdict, "noise"))


def glance(found: Comparison) -> Table:
    """A row for each workload: how fast each contender is beside the baseline, where that is more than noise."""
    names = [name for name in _contenders(found) if name != found.baseline]
    common, labels = _labels(found.workloads)
    rows = []
    for label, workload in zip(labels, found.workloads, strict=True):
        row: list[Value] = [label]
        for name in names:
            mine = workload.row(name)
            ratio = workload.ratio(mine, found.baseline) if mine else None
            if ratio is None:
                row.append("-")
            else:
                row.append(_judged(ratio, ratio.verdict if ratio.low <= 1 <= ratio.high else _percent(ratio.value)))
        rows.append(tuple(row))
    note = (
        f"Speed as a share of {found.baseline}'s. Where the interval of 95 % holds 100 %, the difference is noise, and "
        "half the interval is shown."
    )
    title = f"At a glance: {common}" if common else "At a glance"
    return Table(title, ("workload", *names), tuple(rows), note)


def _contenders(found: Comparison) -> list[str]:
    return list(dict.fromkeys(row.contender for workload in found.workloads for row in workload.rows))


def _labels(workloads: Sequence[WorkloadResult]) -> tuple[str, list[str]]:
    """What all workloads have in common, and what tells each of them from the others; one has its name alone."""
    if len(workloads) == 1:
        return "", [workloads[0].name]
    fields = ("model", "task", "precision", "memory_format", "mode")
    parts = []
    for workload in workloads:
        words = [str(workload.settings[name]) for name in fields]
        words[1] = TASKS.get(words[1], words[1])
        size = "x".join(map(str, workload.settings["image_size"]))
        parts.append([*words, f"batch {workload.batch_size}", size])
    same = [len({words[i] for words in parts}) == 1 for i in range(len(parts[0]))]
    common = ", ".join(word for word, shared in zip(parts[0], same, strict=True) if shared)
    own = [", ".join(word for word, shared in zip(words, same, strict=True) if not shared) for words in parts]
    return common, [label or workload.name for label, workload in zip(own, workloads, strict=True)]


def in_full(workload: WorkloadResult, baseline: str) -> Table:
    """All figures of one workload."""
    headings = (
        "contender", "images/s", "step, ms", "quartiles", "ratio", "interval", "verdict", "peak, MiB", "growth, MiB",
        "of limit",
    )  # fmt: skip
    rows = tuple(_figures(workload, row, baseline) for row in workload.measured())
    return Table(
        workload.name,
        headings,
        rows,
        _note(workload, baseline),
        wide=("step, ms", "quartiles", "interval", "growth, MiB"),
    )


def _figures(workload: WorkloadResult, row: Row, baseline: str) -> tuple[Value, ...]:
    ratio = workload.ratio(row, baseline)
    compared: tuple[Value, ...] = ("", "", "")
    if ratio is not None:
        compared = (f"{ratio.value:.3f}", f"{ratio.low:.3f}-{ratio.high:.3f}", _judged(ratio, ratio.verdict))
    low, high = row.quartiles
    return (
        row.contender,
        f"{workload.speed(row):.1f}",
        f"{1000 * row.step:.1f}",
        f"{1000 * low:.1f} to {1000 * high:.1f}",
        *compared,
        _mebibytes(row.peak),
        _mebibytes(row.grown),
        _percent(workload.share(row)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"


def _note(workload: WorkloadResult, baseline: str) -> str:
    measured = workload.measured()
    said = [f"The ratio is to {baseline}'s speed, with its interval of 95 %."]
    if measured and len(measured[0].times) < LEAST_REPETITIONS:
        said = [f"One repetition is done; a ratio and its interval take {LEAST_REPETITIONS}."]
    used = dict.fromkeys(row.precision for row in measured)
    limits = " and ".join(f"{workload.limit(precision) / 1e9:,.0f} GFLOP/s in {precision}" for precision in used)
    if limits:
        said.append(f"The limit is a large matrix product's {limits}; a step is {workload.flops / 1e9:,.1f} GFLOP.")
    for row in measured:
        if row.flops and abs(row.flops / workload.flops - 1) > 0.01:
            said.append(f"{row.contender} is another network: its step is {row.flops / 1e9:,.1f} GFLOP.")
    said += [f"{row.contender} is left out: {row.error.rstrip('.')}." for row in workload.rows if row.error]
    return " ".join(said)


def print_report(console: Console, found: Comparison) -> None:
    """All tables, in a terminal."""
    for table in tables(found):
        print_table(console, table)


def difference_table(differences: Sequence[Difference]) -> Table:
    """What became of each contender from one comparison to another."""
    rows: list[tuple[Value, ...]] = []
    for d in differences:
        interval = f"{d.ratio.low:.3f}-{d.ratio.high:.3f}"
        verdict = Judged(d.verdict, _OF_RATIO.get(d.verdict, "noise"))
        figures = f"{d.before:.1f}", f"{d.after:.1f}", f"{d.ratio.value:.3f}", interval, f"{d.machine.value:.3f}"
        rows.append((d.workload, d.contender, *figures, verdict))
    headings = ("workload", "contender", "before, images/s", "after", "ratio", "interval", "machine's own", "verdict")
    note = "The machine's own is the ratio of the matrix product's speed, measured in the same rounds."
    return Table("Second report against first", headings, tuple(rows), note, wide=("before, images/s", "after"))


def in_words(differences: Sequence[Difference]) -> str:
    """The upshot of two comparisons in a sentence."""
    slower = [f"{d.contender} in {d.workload} ({d.ratio.value - 1:+.1%})" for d in differences if d.verdict == "slower"]
    if slower:
        return f"Slower by more than noise: {'; '.join(slower)}."
    return "Nothing got slower by more than noise and than the machine itself."


def as_markdown(found: Comparison) -> str:
    """The tables for a README."""
    machine = ", ".join(f"{name} {value}" for name, value in found.machine.items() if value)
    about = shortened(f"Measured on {found.date} with `{found.command}`: {machine}.", 2000)
    return "\n\n".join([about, *map(markdown, tables(found))]) + "\n"


def page(found: Comparison) -> Page:
    """The page: how many workloads each contender is faster and slower in, charts, tables."""
    sections = []
    if found.workloads:
        speed = (
            f"Speed as a multiple of {found.baseline}'s, with its interval of 95 %: where its line crosses the dotted "
            "one, the difference is within the noise."
        )
        colour = _colours(found)
        bars = tuple(_speed_chart(workload, found.baseline, colour) for workload in found.workloads)
        sections.append(Section("Speed", speed, bars, (glance(found),)))
        trained = [w for w in found.workloads if w.settings["task"] == "train" and _with_peak(w)]
        if trained:
            text = "Up and to the left is better. The peak is of the tensors that a step makes, parameters apart."
            points = tuple(_memory_chart(workload, colour) for workload in trained)
            sections.append(Section("Speed against memory", text, points))
        full = tuple(in_full(workload, found.baseline) for workload in found.workloads)
        sections.append(Section("All figures", tables=full))
    details = {name: str(value) for name, value in found.machine.items() if value}
    about = f"Measured on {found.date}. Speeds are compared with {found.baseline}'s."
    return Page(TITLE, about, found.command, details, tuple(_cards(found)), tuple(sections))


def _cards(found: Comparison) -> Iterator[Card]:
    """How often each contender is faster or slower than the baseline."""
    for name in _contenders(found):
        pairs = [(workload, row) for workload in found.workloads if (row := workload.row(name)) is not None]
        ratios = [ratio for workload, row in pairs if (ratio := workload.ratio(row, found.baseline)) is not None]
        if not ratios:
            continue
        count = Counter(_OF_RATIO.get(ratio.verdict, "noise") for ratio in ratios)
        words: dict[Verdict, str] = {"better": "faster", "worse": "slower", "noise": "within noise"}
        said = [f"{count[verdict]} {word}" for verdict, word in words.items() if count[verdict]]
        verdict = _only(count)
        which = "1 workload" if len(ratios) == 1 else f"{len(ratios)} workloads"
        yield Card(name, ", ".join(said), f"beside {found.baseline}, in {which}", verdict)


def _only(count: Counter[Verdict]) -> Verdict | None:
    """Better where something is and nothing worse, and the other way round."""
    if bool(count["better"]) == bool(count["worse"]):
        return None
    return "better" if count["better"] else "worse"


def _colours(found: Comparison) -> dict[str, str]:
    """A library's variants share its colour; networks from outside take those that are left."""
    libraries = dict(zip(_LIBRARIES, PALETTE, strict=False))
    names = _contenders(found)
    known = {name: libraries[library] for name in names if (library := name.partition(":")[0]) in libraries}
    return colours(names, known)


def _speed_chart(workload: WorkloadResult, baseline: str, colour: dict[str, str]) -> Chart:
    bars, said = [], []
    base = workload.row(baseline)
    for row in workload.measured():
        ratio = workload.ratio(row, baseline)
        value = ratio.value if ratio else (base.step / row.step if base else 0.0)
        interval = (ratio.low, ratio.high) if ratio else None
        speed = f"{workload.speed(row):.1f}"
        bars.append(Bar(row.contender, value, interval, speed, colour[row.contender]))
        verdict = f", {ratio.verdict}, interval {ratio.low:.2f} to {ratio.high:.2f}" if ratio else ""
        said.append(f"{row.contender} {value:.2f}, {speed} images/s{verdict}")
    return bar_chart(
        workload.name, bars, unit=f"speed, {baseline} = 1", labels="images/s", description="; ".join(said) + ".",
        reference=1.0,
    )  # fmt: skip


def _with_peak(workload: WorkloadResult) -> list[Row]:
    return [row for row in workload.measured() if row.peak]


def _memory_chart(workload: WorkloadResult, colour: dict[str, str]) -> Chart:
    points = [
        Point(row.contender, (row.peak or 0) / 2**20, workload.speed(row), colour[row.contender])
        for row in _with_peak(workload)
    ]
    said = "; ".join(f"{point.name}: {point.x:.0f} MiB, {point.y:.1f} images/s" for point in points)
    return scatter_chart(
        workload.name, points, x="peak of a step's tensors, MiB", y="images/s", description=f"{said}."
    )  # fmt: skip


def save_pages(found: Comparison, folder: Path) -> None:
    """Write `report.md` and `report.html` into a folder; raises `BenchError` where that fails."""
    write_text(folder / "report.md", as_markdown(found), BenchError)
    write_text(folder / "report.html", html(page(found)), BenchError)
