"""The recipe: everything that decides the outcome of a training run, as data. No torch here.

A recipe is a dataclass of small ones. Every field has a dotted name, `optimizer.lr`, which is the same in TOML, on the
command line (`--optimizer.lr`) and in `Recipe.replace`. What does not change the outcome is in `execution.py`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import arg

from residuum.config import ResNetConfig
from residuum.data.catalog import Catalog, scan
from residuum.data.settings import SMALL_IMAGE, Augmentation, DataSettings
from residuum.errors import ConfigError, nearest, quoted
from residuum.presets import preset
from residuum.validation import AtLeast, Within, check, parse_toml, toml_lines

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights follow their gradients: SGD with Nesterov momentum."""

    # peak learning rate
    lr: Annotated[float, Within("(0, 1000]"), arg(aliases=("--lr",))] = 0.1
    # momentum; 0 is plain SGD
    momentum: Annotated[float, Within("[0, 1)")] = 0.9
    # weight decay of convolutions and classifier; norms and biases have none
    weight_decay: Annotated[float, Within("[0, 1]"), arg(aliases=("--weight-decay",))] = 5e-4

    def __post_init__(self) -> None:
        check(self, "optimizer")


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves through the run: a straight rise, then half a cosine down (1608.03983)."""

    # share of the run's steps in which the learning rate rises
    warmup: Annotated[float, Within("[0, 1)")] = 0.1

    def __post_init__(self) -> None:
        check(self, "schedule")


@dataclass(frozen=True)
class LossSettings:
    """What training makes small: cross-entropy."""

    # share of the target that is spread over all classes
    label_smoothing: Annotated[float, Within("[0, 1)"), arg(aliases=("--label-smoothing",))] = 0.05

    def __post_init__(self) -> None:
        check(self, "loss")


@dataclass(frozen=True)
class AverageSettings:
    """A moving average of the weights, which is then evaluated and saved in place of the last ones."""

    # share of the run's steps that the average reaches back; 0 keeps no average
    window: Annotated[float, Within("[0, 1)")] = 0.0

    def __post_init__(self) -> None:
        check(self, "average")


@dataclass(frozen=True)
class Recipe:
    """What is trained on what, how, and how long. Checked when it is made; raises `ConfigError`."""

    # passes over the training images
    epochs: Annotated[int, AtLeast(1)] = 30
    # images in a step
    batch_size: Annotated[int, AtLeast(2)] = 64
    # of initialisation, order, augmentation and dropout
    seed: Annotated[int, AtLeast(0, 2**63 - 1)] = 0
    # fp32, bf16, or auto, which is bf16 where the device computes it
    precision: Precision = "auto"
    # the network; any field of the preset can be changed, --model.width 0.5
    model: ResNetConfig = field(default_factory=lambda: preset("digits_resnet"))
    data: DataSettings = field(default_factory=DataSettings)
    augment: Augmentation = field(default_factory=lambda: Augmentation(pad=1))
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    average: AverageSettings = field(default_factory=AverageSettings)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def default(cls, data: str | Path | Catalog = "digits", model: str | None = None) -> Self:
        """What `residuum train --data ...` does by itself: a network and a schedule that fit the data.

        `data` is a dataset's name, a folder or its catalog; `model` is a preset in place of the usual one. Raises
        `DataError` for data that cannot be found and `ConfigError` for an unknown preset.
        """
        catalog = data if isinstance(data, Catalog) else scan(str(data))
        name, fields = _usual(catalog)
        config = preset(model or name).replace(in_channels=catalog.channels, num_classes=len(catalog.classes))
        return cls(model=config).replace({"data.path": catalog.name} | fields)

    def replace(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """A copy with some fields changed, checked as a new one is.

        Fields are named by their dotted names, `replace({"optimizer.lr": 0.2}, epochs=5)`. A table's value is a new
        table, or a dict of those of its fields that change. Raises `ConfigError` for a name that there is not.
        """
        values: dict[str, Any] = {}
        tables: dict[str, dict[str, Any]] = {}  # of each, what changes: all of it at once, as one may need another
        for name, value in (dict(changes or {}) | more).items():
            _know(name)
            section, _, inner = name.partition(".")
            if section in SECTIONS and (inner or isinstance(value, Mapping)):
                given = {inner: value} if inner else {str(key): part for key, part in value.items()}
                for key in given:
                    _know(f"{section}.{key}")
                tables[section] = tables.get(section, {}) | given
            elif section in SECTIONS and not dataclasses.is_dataclass(value):
                raise ConfigError(f"{section} is {quoted(value)}; it must be a table of fields, [{section}] in a file")
            else:
                values[section] = value
        for section, given in tables.items():
            values[section] = dataclasses.replace(values.get(section, getattr(self, section)), **given)
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Dotted name to value, of every field."""
        return {name: _value(self, name) for name in NAMES}

    def to_toml(self) -> str:
        """Every field, in tables. A field that is left out is None: TOML has no word for it."""
        return toml_lines(_without_none(dataclasses.asdict(self)))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of `to_toml`; raises `ConfigError`."""
        return cls().replace(parse_toml(text))


# Tables of a recipe to their classes, and the dotted names of all fields.
SECTIONS: dict[str, Any] = {
    "model": ResNetConfig,
    "data": DataSettings,
    "augment": Augmentation,
    "optimizer": OptimizerSettings,
    "schedule": ScheduleSettings,
    "loss": LossSettings,
    "average": AverageSettings,
}
NAMES = tuple(
    name
    for top in dataclasses.fields(Recipe)
    for name in (
        [f"{top.name}.{inner.name}" for inner in dataclasses.fields(SECTIONS[top.name])]
        if top.name in SECTIONS
        else [top.name]
    )
)


def _know(name: str) -> None:
    """Raise `ConfigError` for a name that no field has, with the nearest that one has."""
    if name in NAMES or name in SECTIONS:
        return
    last = name.rpartition(".")[2]
    same = [known for known in NAMES if known.rpartition(".")[2] == last]
    hint = f"; did you mean {quoted(same[0])}?" if same else nearest(name, NAMES)
    raise ConfigError(f"{quoted(name)} is not a field of a recipe{hint}")


def _value(recipe: Recipe, name: str) -> Any:
    section, _, inner = name.partition(".")
    return getattr(getattr(recipe, section), inner) if inner else getattr(recipe, section)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted name to both values, of the fields in which two recipes differ."""
    pairs = ((name, _value(one, name), _value(other, name)) for name in NAMES)
    return {name: (a, b) for name, a, b in pairs if a != b}


# -- defaults of the data ----------------------------------------------------------------------------------------------

_SMALL: dict[str, Any] = {
    "epochs": 30, "batch_size": 128, "optimizer.lr": 0.4, "augment.pad": 4, "augment.flip": True
}  # fmt: skip
_BY_DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits_resnet", {}),
    "cifar10": ("cifar_resnet20", _SMALL),
    "cifar100": ("cifar_resnet56", _SMALL),
    "fashion-mnist": ("cifar_resnet20", _SMALL | {"augment.pad": 2}),
}
_PHOTOGRAPHS: tuple[str, dict[str, Any]] = ("resnet18", {
    "epochs": 90, "schedule.warmup": 0.05, "augment.crop_scale": (0.08, 1.0), "augment.pad": 0, "augment.flip": True
})  # fmt: skip


def _usual(catalog: Catalog) -> tuple[str, dict[str, Any]]:
    """The preset that goes with a dataset, and the fields in which its recipe differs from a new one."""
    if catalog.name in _BY_DATA:
        return _BY_DATA[catalog.name]
    return _BY_DATA["cifar10"] if catalog.image_size and max(catalog.image_size) <= SMALL_IMAGE else _PHOTOGRAPHS


def check_fit(recipe: Recipe, catalog: Catalog) -> None:
    """Raise `ConfigError` where the network cannot take this data."""
    classes = len(catalog.classes)
    if recipe.model.num_classes != classes:
        raise ConfigError(
            f"model.num_classes is {recipe.model.num_classes} but {quoted(catalog.name)} has {classes} classes; leave "
            "model.num_classes out"
        )
    if not any(catalog.files.values()) and recipe.model.in_channels != catalog.channels:  # files are read as either
        raise ConfigError(
            f"model.in_channels is {recipe.model.in_channels} but {catalog.name} has {catalog.channels}; leave "
            "model.in_channels out"
        )


# -- recipe files ------------------------------------------------------------------------------------------------------


def read_recipe(path: Path) -> dict[str, Any]:
    """What a recipe file says, by dotted name; raises `ConfigError`. `model.preset` may be among it.

    A file holds any part of a recipe: what it leaves out, the data decides.
    """
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ConfigError(f"the recipe {quoted(str(path))} cannot be read: {reason}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTIONS and not isinstance(value, dict):
            example = "preset" if name == "model" else dataclasses.fields(SECTIONS[name])[0].name
            raise ConfigError(
                f"{name} in {path} is {quoted(value)}; it must be a table: [{name}] with a line {example} = ..."
            )
        found |= {f"{name}.{inner}": part for inner, part in value.items()} if name in SECTIONS else {name: value}
    for name in found:
        if name != "model.preset":
            _know_in(name, path)
    for name in ("model.preset", "data.path"):
        if not isinstance(found.get(name, ""), str):
            raise ConfigError(f"{name} in {path} is {quoted(found[name])}; it must be text")
    return found


def _know_in(name: str, path: Path) -> None:
    try:
        _know(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
