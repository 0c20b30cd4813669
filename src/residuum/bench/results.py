"""What a comparison found, as data: out to JSON and in again, and two of them side by side."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.code_size.lines import LineCount

from residuum.bench.intervals import Ratio, paired, unpaired
from residuum.errors import BenchError, ConfigError
from residuum.files import write_text
from residuum.validation import parse_json

FORMAT = 1  # of the JSON; raised when an older package could not read it
Sittings = tuple[tuple[float, ...], ...]  # seconds of a step, by sitting and round


def sittings_of(times: Sequence[Sequence[float]]) -> Sittings:
    """The same times, unchanging."""
    return tuple(tuple(sitting) for sitting in times)


@dataclass(frozen=True)
class Row:
    """One contender in one cell. `times` are seconds of a step by sitting and round, the same ones for all in the cell.

    `precision` is that of its convolutions, `peak` the bytes that a step's tensors take at most beyond what is there
    all the time, `grown` how much the process's resident memory grew in the first step; None where it cannot be known.
    `error` says why there are no times.
    """

    contender: str
    times: Sittings
    precision: str = ""
    peak: int | None = None
    grown: int | None = None
    error: str = ""

    @property
    def step(self) -> float:
        """Seconds of a step, the median."""
        return statistics.median(chain(*self.times))

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the seconds of a step."""
        low, _, high = statistics.quantiles(chain(*self.times), n=4)
        return low, high


@dataclass(frozen=True)
class CellResult:
    """One cell: its settings in words and in parts, its rows, the work of a step, and the machine's own speed.

    `flops` are of convolutions and matrix products in one step. `references` holds seconds of a large matrix product of
    `reference_flops` in each precision, in the same rounds.
    """

    name: str
    settings: dict[str, Any]
    flops: int
    rows: tuple[Row, ...]
    references: dict[str, Sittings]
    reference_flops: int

    @property
    def batch(self) -> int:
        """Images in a step."""
        return int(self.settings["batch"])

    def limit(self, precision: str) -> float:
        """FLOP/s of the matrix product."""
        return self.reference_flops / statistics.median(chain(*self.references[precision]))

    def measured(self) -> list[Row]:
        """The rows that have times."""
        return [row for row in self.rows if row.times]

    def row(self, contender: str) -> Row | None:
        """A contender's row, if it has times."""
        return next((row for row in self.measured() if row.contender == contender), None)

    def speed(self, row: Row) -> float:
        """Images per second."""
        return self.batch / row.step

    def share(self, row: Row) -> float:
        """FLOP/s over those of the matrix product in the row's precision."""
        return self.flops / row.step / self.limit(row.precision)

    def ratio(self, row: Row, baseline: str) -> Ratio | None:
        """Speed over the baseline's, or None where the baseline has no times or is the row itself."""
        other = self.row(baseline)
        return None if other is None or other is row else paired(row.times, other.times)


@dataclass(frozen=True)
class Lines:
    """The lines of code of a contender: that define its network, and to change for each of `changes.CHANGES`."""

    count: LineCount
    changes: dict[str, int]


@dataclass(frozen=True)
class Report:
    """A whole comparison: where, when and how it was made, its cells, and the lines."""

    machine: dict[str, Any]
    command: str
    date: str
    baseline: str
    cells: tuple[CellResult, ...] = ()
    lines: tuple[Lines, ...] = ()

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({"residuum bench": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The inverse of `to_json`; raises `BenchError`."""
        try:
            values = parse_json(text)
            if values.pop("residuum bench") != FORMAT:
                raise BenchError("it was written by another version of residuum")
            cells = tuple(_cell(cell) for cell in values.pop("cells"))
            lines = tuple(Lines(LineCount(**line["count"]), line["changes"]) for line in values.pop("lines"))
            return cls(**values, cells=cells, lines=lines)
        except (ConfigError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"it is no report of 'residuum bench' ({error!r})") from None

    def save(self, path: Path) -> None:
        """As JSON."""
        write_text(path, self.to_json(), BenchError)

    @classmethod
    def load(cls, path: Path) -> "Report":
        """What `save` wrote; raises `BenchError`."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"the report {path} cannot be read: {error}") from None
        except BenchError as error:
            raise BenchError(f"{path} cannot be compared: {error}") from None


def _cell(values: dict[str, Any]) -> CellResult:
    rows = tuple(Row(**row | {"times": sittings_of(row["times"])}) for row in values.pop("rows"))
    references = {precision: sittings_of(times) for precision, times in values.pop("references").items()}
    return CellResult(**values, rows=rows, references=references)


@dataclass(frozen=True)
class Difference:
    """A contender in the same cell of two reports: the second's speed over the first's, and the machine's own."""

    cell: str
    contender: str
    before: float  # images per second
    after: float
    ratio: Ratio
    machine: Ratio

    @property
    def verdict(self) -> str:
        """Whether it got slower or faster by more than noise, and than the machine itself did."""
        said = self.ratio.verdict
        if said in ("slower", "faster") and said == self.machine.verdict and self._no_more_than_machine():
            return f"{said}, and so is the machine"
        return said

    def _no_more_than_machine(self) -> bool:
        mine, its = (abs(math.log(ratio.value)) for ratio in (self.ratio, self.machine))
        return mine <= its + math.log(1 + self.ratio.noise + self.machine.noise)


def compare(first: Report, second: Report) -> Iterator[Difference]:
    """Everything that both reports have measured; raises `BenchError` where that is nothing."""
    before = {cell.name: cell for cell in first.cells}
    found = False
    for cell in second.cells:
        if (old := before.get(cell.name)) is None:
            continue
        for row in cell.measured():
            if (other := old.row(row.contender)) is None:
                continue
            found = True
            ratio = unpaired(row.times, other.times)
            machine = unpaired(cell.references[row.precision], old.references[row.precision])
            yield Difference(cell.name, row.contender, old.speed(other), cell.speed(row), ratio, machine)
    if not found:
        raise BenchError("the two reports have no cell and contender in common; measure the same with both")
