"""What a comparison found, as data: out to JSON and in again, and two of them side by side."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

from residuum.bench.intervals import LEAST_REPETITIONS, Ratio, paired, unpaired
from residuum.errors import BenchError, quoted, shortened
from residuum.files import read_text, write_text
from residuum.validation import AtLeast, check, parse_json

FORMAT = 2  # of the JSON; raised when an older package could not read it
_Count = Annotated[int | None, AtLeast(0, 2**62)]
Times = tuple[tuple[float, ...], ...]  # seconds of a step, by repetition and round


def frozen(times: Sequence[Sequence[float]]) -> Times:
    """The same times, unchanging; raises `ValueError` for what is no time."""
    found = tuple(tuple(map(float, repetition)) for repetition in times)
    if not all(0 < seconds < math.inf for seconds in chain(*found)):
        raise ValueError("a time is not a positive number of seconds")
    return found


@dataclass(frozen=True)
class Row:
    """One contender in one workload. `times` are seconds of a step, in the same repetitions and rounds as the others'.

    `precision` is that of its convolutions, `flops` its floating-point operations in a step where they are its own,
    `peak` the bytes that a step's tensors take at most beyond what is there all the time, `grown` how much the
    process's resident memory grew in the first step; None where it cannot be known. `error` says why there are no
    times.
    """

    contender: str
    times: Times
    precision: str = ""
    flops: _Count = None
    peak: _Count = None
    grown: Annotated[int | None, AtLeast(-(2**62), 2**62)] = None
    error: str = ""

    def __post_init__(self) -> None:
        check(self)

    @property
    def step(self) -> float:
        """Seconds of a step, the median."""
        return statistics.median(chain(*self.times))

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the seconds of a step."""
        times = list(chain(*self.times))
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        return low, high


@dataclass(frozen=True)
class WorkloadResult:
    """One workload: its settings in words and in parts, its rows, the work of a step, and the machine's own speed.

    `flops` are of convolutions and matrix products in one step. `references` holds seconds of a large matrix product of
    `reference_flops` in each precision that was used, in the same rounds: in bf16 it takes minutes where a processor
    does not compute that.
    """

    name: str
    settings: dict[str, Any]
    flops: int
    rows: tuple[Row, ...]
    references: dict[str, Times]
    reference_flops: int

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return int(self.settings["batch_size"])

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
        return self.batch_size / row.step

    def share(self, row: Row) -> float:
        """FLOP/s over those of the matrix product in the row's precision."""
        return (row.flops or self.flops) / row.step / self.limit(row.precision)

    def ratio(self, row: Row, baseline: str) -> Ratio | None:
        """Speed over the baseline's, or None where the baseline has no times, is the row itself, or too few repetitions
        are done.
        """
        other = self.row(baseline)
        if other is None or other is row or len(row.times) < LEAST_REPETITIONS:
            return None
        return paired(row.times, other.times)


@dataclass(frozen=True)
class Comparison:
    """A whole comparison: where, when and how it was made, and its workloads."""

    machine: dict[str, Any]
    command: str
    date: str
    baseline: str
    workloads: tuple[WorkloadResult, ...] = ()

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({"residuum bench": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; raises `BenchError`."""
        try:
            values = parse_json(text)
            if values.pop("residuum bench") != FORMAT:
                raise BenchError("it was written by another version of residuum")
            read = cls(**values | {"workloads": tuple(_workload(each) for each in values["workloads"])})
            for workload in read.workloads:
                for row in workload.measured():  # what its tables show has to be there
                    workload.speed(row), workload.share(row), workload.ratio(row, read.baseline)
            return read
        except BenchError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            why = shortened(f"{type(error).__name__}: {error}", 150)
            raise BenchError(f"it is no report of 'residuum bench' ({why})") from None

    def save(self, path: Path) -> None:
        """As JSON; raises `BenchError` where that cannot be written."""
        write_text(path, self.to_json(), BenchError)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote; raises `BenchError`."""
        try:
            text = read_text(path, BenchError, most=2**28)  # a report with many repetitions has megabytes
            return cls.from_json(text)
        except BenchError as error:
            raise BenchError(f"{quoted(str(path))} cannot be compared: {error}") from None


def _workload(values: dict[str, Any]) -> WorkloadResult:
    rows = tuple(Row(**row | {"times": frozen(row["times"])}) for row in values["rows"])
    references = {precision: frozen(times) for precision, times in values["references"].items()}
    return WorkloadResult(**values | {"name": str(values["name"]), "rows": rows, "references": references})


@dataclass(frozen=True)
class Difference:
    """A contender in the same workload of two comparisons: the later speed over the earlier, and the machine's own."""

    workload: str
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


def compare(first: Comparison, second: Comparison) -> Iterator[Difference]:
    """Everything that both have measured; raises `BenchError` where that is nothing."""
    before = {workload.name: workload for workload in first.workloads}
    found = False
    for now in second.workloads:
        if (then := before.get(now.name)) is None:
            continue
        for row in now.measured():
            other = then.row(row.contender)
            if other is None or min(len(row.times), len(other.times)) < LEAST_REPETITIONS:
                continue
            found = True
            ratio = unpaired(row.times, other.times)
            machine = unpaired(now.references[row.precision], then.references[row.precision])
            yield Difference(now.name, row.contender, then.speed(other), now.speed(row), ratio, machine)
    if not found:
        raise BenchError(
            f"the two reports have no workload and contender in common that {LEAST_REPETITIONS} repetitions measured; "
            "measure the same with both"
        )
