"""What 8-bit integers cost a network and what they give: block by block, in accuracy, size and speed."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from residuum.evaluation.counts import Paired
from residuum.report.tables import Judged, Table, Value

SHOWN = 10  # blocks in the table


@dataclass(frozen=True)
class BlockError:
    """A block's ratio of signal to quantisation noise at its output, in dB.

    `own` is what the block itself loses, given the float network's input; of a block that was `kept` in float it is
    what it lost before. `whole` is that of the whole network as it is given out.
    """

    name: str
    own: float
    whole: float
    kept: bool


@dataclass(frozen=True)
class Speed:
    """Images/s of the float and the int8 network in the same runtime, measured in turns."""

    batch: int
    float32: float
    int8: float


@dataclass(frozen=True)
class Round:
    """One attempt of the gate: what was kept in float, and the accuracy lost, in points."""

    kept: tuple[str, ...]
    drop: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Int8Report:
    """What was done and what was found. Sizes are bytes of the network alone."""

    runtime: str
    method: str
    float_precision: str  # that in which the runtime ran the float network
    calibration_images: int
    calibration_asked: int
    test_images: int
    max_drop: float
    reduced: bool
    processor: str
    instructions: tuple[str, ...]
    blocks: tuple[BlockError, ...]
    logits: float
    paired: Paired
    agreement: float
    float_bytes: int
    int8_bytes: int
    speed: tuple[Speed, ...]
    rounds: tuple[Round, ...]
    notes: tuple[str, ...]

    @property
    def drop(self) -> float:
        """Points of top-1 accuracy that were lost."""
        return -100 * self.paired.difference

    @property
    def kept(self) -> tuple[str, ...]:
        """The blocks in float."""
        return tuple(block.name for block in self.blocks if block.kept)

    @property
    def worst(self) -> tuple[BlockError, ...]:
        """The blocks by what each itself loses, the worst first."""
        return tuple(sorted(self.blocks, key=lambda block: block.own))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON says it."""
        paired = self.paired
        count = self.test_images
        values = dataclasses.asdict(self)
        values["paired"] |= {"difference": paired.difference, "interval": list(paired.interval)}
        values["accuracy"] = {
            "float": (paired.both + paired.first_alone) / count,
            "int8": (paired.both + paired.second_alone) / count,
        }
        return values


def tables(report: Int8Report) -> tuple[Table, Table]:
    """The worst blocks, and what the whole network lost and gained."""
    return worst_blocks(report.blocks), _whole(report)


def worst_blocks(blocks: tuple[BlockError, ...]) -> Table:
    """The blocks that lose most, worst first."""
    worst = sorted(blocks, key=lambda block: block.own)[:SHOWN]
    rows = tuple(
        (block.name, f"{block.own:.1f}", f"{block.whole:.1f}", "float" if block.kept else "int8") for block in worst
    )
    return Table(
        f"Signal to quantisation noise, the {len(rows)} worst of {len(blocks)} blocks",
        ("block", "own dB", "with all before dB", "runs in"),
        rows,
        "Own: of the block in int8, given an exact input. At 20 dB a tenth of the signal is noise.",
    )


def _whole(report: Int8Report) -> Table:
    paired, count = report.paired, report.test_images
    low, high = paired.interval
    before, after = paired.both + paired.first_alone, paired.both + paired.second_alone
    judged = Judged(
        f"{-report.drop:+.2f} points, {100 * low:+.2f} to {100 * high:+.2f}",
        "worse" if high < 0 else "better" if low > 0 else "noise",
    )
    megabytes = [f"{size / 1e6:.2f} MB" for size in (report.float_bytes, report.int8_bytes)]
    rows: list[tuple[Value, ...]] = [
        ("top-1", f"{100 * before / count:.2f} %", f"{100 * after / count:.2f} %", judged),
        ("size", *megabytes, f"{report.int8_bytes / report.float_bytes:.2f}"),
    ]
    rows += [
        (f"images/s at batch {s.batch}", f"{s.float32:,.0f}", f"{s.int8:,.0f}", f"{s.int8 / s.float32:.2f}")
        for s in report.speed
    ]  # fmt: skip
    told = [
        f"{count:,} test images, {report.calibration_images} for calibration.",
        f"The same class in {100 * report.agreement:.2f} % of test images.",
        f"Signal to noise of the logits {report.logits:.1f} dB.",
        f"In float: {', '.join(report.kept)}." if report.kept else "No block is left in float.",
        *(f"{note[0].upper()}{note[1:]}." for note in report.notes),
    ]
    return Table(
        f"int8 for {report.runtime} by {report.method}",
        ("", report.float_precision, "int8", "int8 against it"),
        tuple(rows),
        " ".join(told),
    )
