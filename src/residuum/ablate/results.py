"""What a study has found so far, as data: from here statistics and the report begin. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["done", "failed", "diverged", "waiting"]
Design = Literal["ablate", "add", "factorial", "grid", "list"]


@dataclass(frozen=True)
class Variant:
    """One configuration of a study: its name, the level of each factor, the fields by which it differs from the base.

    `parameters`, `macs` of one image are known before anything runs.
    """

    name: str
    levels: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class CellResult:
    """One variant at one seed. `metrics` are the last epoch's, accuracies from 0 to 1; `weights` is their digest.

    `correct` says of each test image, in the data's order, whether it was right. `reason` is why a cell failed or
    diverged, in a sentence; `command` repeats it.
    """

    variant: str
    seed: int
    key: str
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: str = ""
    correct: tuple[bool, ...] | None = None
    reason: str = ""
    command: str = ""
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
    """A study as far as it is: `base` is the name of the variant that the others are compared with.

    `seeds` are those asked for now, `extended` says that there were fewer before; `looks` are the numbers of seeds that
    were fixed beforehand, at which results are looked at. `older` are cells of older code, which do not count.
    """

    name: str
    design: Design
    base: str
    metric: str
    variants: tuple[Variant, ...]
    cells: tuple[CellResult, ...]
    seeds: tuple[int, ...]
    also: tuple[str, ...] = ()
    margin: float | None = None  # in the metric's own unit; points of accuracy are 0.01
    extended: bool = False
    looks: tuple[int, ...] = ()
    older: tuple[CellResult, ...] = ()
    tuned: Tuned | None = None
    about: Mapping[str, str] = field(default_factory=dict)  # versions, machine, the study file as run

    def at(self, variant: str, seed: int) -> CellResult | None:
        """The cell of a variant at a seed."""
        return next((cell for cell in self.cells if (cell.variant, cell.seed) == (variant, seed)), None)
