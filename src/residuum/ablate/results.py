"""What a study has found so far, as data: from here statistics and the report begin. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["done", "failed", "diverged", "waiting"]
Design = Literal["ablate", "add", "factorial", "grid", "list"]


@dataclass(frozen=True)
class Variant:
    """One configuration of a study. Its costs are known before anything runs."""

    # its name in the study
    name: str
    # factor to level
    levels: Mapping[str, str] = field(default_factory=dict)
    # field to value where it differs from the base
    changes: Mapping[str, Any] = field(default_factory=dict)
    # number of parameters
    parameters: int = 0
    # MAC of one image
    macs: int = 0


@dataclass(frozen=True)
class CellResult:
    """One variant at one seed."""

    # name of its variant
    variant: str
    # its seed
    seed: int
    # digest of all that decides what comes out
    key: str
    # done, or how far it is
    status: Status
    # numbers of the last epoch; accuracies from 0 to 1
    metrics: Mapping[str, float] = field(default_factory=dict)
    # digest of the weights
    weights: str = ""
    # of each test image, in the data's order, whether it was right
    correct: tuple[bool, ...] | None = None
    # why it failed or diverged, in a sentence
    reason: str = ""
    # line that repeats it
    command: str = ""
    # a row of numbers for each epoch
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Tried:
    """A combination of nuisance values that was tried for a variant, and the tuned metric by seed.

    `found` leaves out seeds whose cell is not done; `diverged` counts those whose loss became no number.
    """

    variant: str
    values: Mapping[str, Any]
    found: Mapping[int, float]
    diverged: int = 0
    chosen: bool = False


@dataclass(frozen=True)
class Tuned:
    """How nuisance values were chosen: all that was tried, over which seeds, by which metric."""

    metric: str
    seeds: tuple[int, ...]
    tried: tuple[Tried, ...]
    cells: tuple[CellResult, ...] = ()

    def chosen(self, variant: str) -> Mapping[str, Any]:
        """The values that a variant is trained with; none as long as they are not known."""
        return next((one.values for one in self.tried if one.variant == variant and one.chosen), {})


@dataclass(frozen=True)
class StudyResult:
    """A study as far as it is."""

    # its name
    name: str
    # which variants follow from the factors
    design: Design
    # name of the variant that the others are compared with
    base: str
    # number that is compared
    metric: str
    # all variants, the base among them
    variants: tuple[Variant, ...]
    # what is there, of the seeds that are asked for
    cells: tuple[CellResult, ...]
    # the seeds that are asked for now
    seeds: tuple[int, ...]
    # numbers that are shown beside the metric
    also: tuple[str, ...] = ()
    margin: float | None = None  # in the metric's own unit; points of accuracy are 0.01
    # whether there were fewer seeds before
    extended: bool = False
    # numbers of seeds, fixed beforehand, at which results are looked at
    looks: tuple[int, ...] = ()
    # cells of older code, which do not count
    older: tuple[CellResult, ...] = ()
    # how nuisance values were chosen, if they were
    tuned: Tuned | None = None
    about: Mapping[str, str] = field(default_factory=dict)  # versions, machine, the study file as run

    def at(self, variant: str, seed: int) -> CellResult | None:
        """The cell of a variant at a seed."""
        return next((cell for cell in self.cells if (cell.variant, cell.seed) == (variant, seed)), None)
