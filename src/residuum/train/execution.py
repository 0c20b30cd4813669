"""How a run is carried out: what may differ from one machine to the next and does not change the outcome. No torch."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import arg

from residuum.errors import ConfigError, quoted
from residuum.files import cache_folder
from residuum.units import parse_size
from residuum.validation import AtLeast, Within, check, parse_toml, refuse_unknown, toml_lines

Service = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class Execution:
    """Where and with what a run is trained. A run that is resumed may have another one. Raises `ConfigError`."""

    # cpu, cuda, cuda:1, mps, ...; auto is the accelerator if there is one
    device: str = "auto"
    # number of processes that read image files
    workers: Annotated[int, AtLeast(0)] = 2
    # budget such as 4GB or 7.5GiB that a step is made to fit by activation checkpointing: a GB is 10^9 bytes, a GiB
    # 2^30, and a GPU that is sold with "8 GB" has 8GiB; auto is what is free; where left out, nothing is recomputed
    memory: str | None = None
    # folder for datasets that are downloaded; RESIDUUM_CACHE, or else ~/.cache/residuum, where left out
    cache: str | None = None
    # let processes share each chunk, and batch norms take its statistics over all of them; else a process has whole
    # chunks, and there must be as many as processes
    sync_norm: bool = False
    # seconds between saves of the state within an epoch; it is saved after each epoch too
    save_every: Annotated[float, Within("(0, 1e9]")] = 600.0
    # seconds that a process waits for another one before it gives it up
    timeout: Annotated[float, Within("[1, 1e6]")] = 600.0
    # look at the test split once, after the last epoch
    test: bool = True
    # services that are given the numbers of each epoch too; each is an extra of its name
    log: Annotated[
        tuple[Service, ...],
        arg(metavar="{tensorboard,wandb,mlflow} ...", help_behavior_hint="(default: none)"),
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        if self.memory not in (None, "auto"):
            parse_size(self.memory)

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache, which need not be there yet; raises `ConfigError` for a `~name` without a home."""
        try:
            return cache_folder() if self.cache is None else Path(self.cache).expanduser()
        except RuntimeError:
            raise ConfigError(f"cache is {quoted(self.cache)}; it must be a folder, and that user has none") from None

    def to_toml(self) -> str:
        """One line per field, without those that are None."""
        return toml_lines({name: value for name, value in dataclasses.asdict(self).items() if value is not None})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of `to_toml`; raises `ConfigError`."""
        values: dict[str, Any] = parse_toml(text)
        refuse_unknown(values, (f.name for f in dataclasses.fields(cls)), "field of an execution")
        return cls(**values)


# -- processes, as torchrun tells of them ------------------------------------------------------------------------------


def world_size() -> int:
    """How many processes torchrun has started; 1 without it. Raises `ConfigError`."""
    return from_torchrun("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this is; 0 without torchrun. Raises `ConfigError`."""
    return from_torchrun("RANK", 0) if world_size() > 1 else 0


def from_torchrun(name: str, default: int) -> int:
    """A whole number in the environment, as torchrun sets it; raises `ConfigError`."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise ConfigError(f"{name} is {quoted(os.environ[name])}; it must be a whole number, as by torchrun") from None
