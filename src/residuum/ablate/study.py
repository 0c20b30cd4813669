"""A study as data: which variants of a recipe are compared over which seeds, from a TOML file or from flags. No torch.

design    variants
ablate    the recipe with every factor on, and one without each
add       the recipe with every factor off, and one with each
factorial each factor on or off, or at one of its levels, with each of the others
grid      the same, for factors of many levels
list      those that are listed, the first of which is the base
"""

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from residuum.ablate.results import Design
from residuum.data.catalog import Catalog, split_files
from residuum.errors import ConfigError, ResiduumError, nearest, quoted
from residuum.files import read_text
from residuum.train.recipe import NAMES, SECTIONS, Recipe, check_fit, fields_of, layered, read_recipe
from residuum.validation import AtLeast, Within, check, parse_toml, refuse_unknown

# What a cell is measured by: of the last epoch, but for seconds, which are of all training, and peak memory in bytes.
METRICS = (
    "test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_accuracy", "train_loss", "seconds",
    "images_per_second", "peak_memory", "parameters", "macs",
)  # fmt: skip
MOST_VARIANTS, MOST_SEEDS = 1000, 10_000
TUNING_SEEDS = 10**9  # the first seed of those that values are tuned with, far from those of a study
_OWN = ("seed", "data.path")  # what no variant may change: a study has its seeds, and one set of data
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Question:
    """What a study asks, and over which seeds. Checked when it is made; raises `ConfigError`."""

    # what the study and its folder are called
    name: str
    # which variants follow from the factors
    design: Design = "ablate"
    # seeds, each of which all variants are trained with; a number stands for 0, 1, ... up to before it
    seeds: Annotated[tuple[int, ...], AtLeast(0, 2**63 - 1)] = (0, 1, 2, 3, 4)
    # number that is compared
    metric: str = "test_accuracy"
    # numbers that are shown beside it
    also: tuple[str, ...] = ("test_loss", "seconds", "parameters", "macs")
    # smallest difference that matters, in points of an accuracy or in the metric's own unit
    margin: Annotated[float | None, Within("(0, 1e9]")] = None
    # numbers of seeds, fixed beforehand, at which results are looked at
    looks: Annotated[tuple[int, ...], AtLeast(1)] = ()

    def __post_init__(self) -> None:
        number: Any = self.seeds
        if type(number) is int and 1 <= number <= MOST_SEEDS:
            object.__setattr__(self, "seeds", tuple(range(number)))
        check(self)
        if not re.fullmatch(r"[\w.+=-]{1,80}", self.name) or self.name.startswith("."):
            raise ConfigError(f"name is {quoted(self.name)}; it must be letters, digits, '_', '-', '+', '=' or '.'")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds is {quoted(self.seeds)}; it must be a number of seeds, or a list of unlike ones")
        for name in (self.metric, *self.also):
            refuse_unknown([name], METRICS, "metric")


@dataclass(frozen=True)
class Running:
    """How the cells of a study are run: nothing that decides what comes out, but for threads in the last digits."""

    # number of cells at once
    workers: Annotated[int, AtLeast(1, 1024)] = 1
    # number of processes that train a cell together, started by torchrun
    processes: Annotated[int, AtLeast(1, 1024)] = 1
    # threads of each on the CPU; where left out the cores are shared out
    threads: Annotated[int | None, AtLeast(1, 4096)] = None
    # cpu, cuda, cuda:1, ...; auto is the accelerator if there is one
    device: str = "auto"
    # number of processes that read image files, for each cell
    readers: Annotated[int, AtLeast(0)] = 2
    # memory budget of a cell such as 4GB, which it is made to fit by activation checkpointing
    memory: str | None = None
    # time that a cell may take, such as 90s, 30m or 2h
    timeout: str | None = None
    # how often a cell that failed is tried again, once each time the study is run
    retries: Annotated[int, AtLeast(0)] = 1
    # what a finished cell keeps: its numbers, or its weights too
    keep: Literal["metrics", "weights"] = "metrics"

    def __post_init__(self) -> None:
        check(self, "run")
        self.seconds  # noqa: B018 (a wrong one is told now)

    @property
    def seconds(self) -> float | None:
        """The timeout in seconds."""
        if self.timeout is None:
            return None
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s?([smh])", self.timeout)
        if found is None or not float(found[1]):
            raise ConfigError(f"run.timeout is {quoted(self.timeout)}; it must be a time such as 90s, 30m or 2h")
        return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class Tuning:
    """Nuisance fields, tried alike for every variant on images that are held out, with seeds of their own.

    `fields` has the values of each by its dotted name; all combinations are tried. Raises `ConfigError`.
    """

    fields: Mapping[str, tuple[Any, ...]]
    # seeds of each combination; a number stands for so many that no study has by itself
    seeds: Annotated[tuple[int, ...], AtLeast(0, 2**63 - 1)] = (TUNING_SEEDS, TUNING_SEEDS + 1)
    # number by which the best combination is chosen
    metric: Literal["val_accuracy", "val_loss"] = "val_accuracy"

    def __post_init__(self) -> None:
        number: Any = self.seeds
        if type(number) is int and 1 <= number <= MOST_SEEDS:
            object.__setattr__(self, "seeds", tuple(range(TUNING_SEEDS, TUNING_SEEDS + number)))
        if self.metric not in ("val_accuracy", "val_loss"):
            raise ConfigError(f"tune.metric is {quoted(self.metric)}; it must be val_accuracy or val_loss")
        known = self.seeds if isinstance(self.seeds, list | tuple) else ()
        if not known or len(set(known)) != len(known) or any(type(s) is not int or not 0 <= s < 2**63 for s in known):
            raise ConfigError(f"tune.seeds is {quoted(number)}; it must be a number of seeds, or a list of unlike ones")
        object.__setattr__(self, "seeds", tuple(known))
        if not self.fields:
            raise ConfigError("[tune] names no field; give one with the values to try, such as lr = [0.05, 0.1, 0.2]")
        if math.prod(len(values) for values in self.fields.values()) > MOST_VARIANTS:
            raise ConfigError(f"[tune] makes more than {MOST_VARIANTS:,} combinations of values")

    @property
    def combinations(self) -> tuple[dict[str, Any], ...]:
        """What is tried for each variant: dotted name to value."""
        return tuple(dict(zip(self.fields, each, strict=True)) for each in itertools.product(*self.fields.values()))


@dataclass(frozen=True)
class Level:
    """One of the states of a factor, and the fields that it sets, by dotted name."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Factor:
    """What a study varies: its first level is what the base of a grid has."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Named:
    """A variant before its recipe is made: its name, the level of each factor, the fields that it sets."""

    name: str
    levels: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study. `base` has the fields of its recipe as a recipe file says them, `text` is the study file.

    `line` is what the command line gives, over the file where there is one. Raises `ConfigError` where tuning and study
    do not go together.
    """

    question: Question
    running: Running
    base: Mapping[str, Any]
    variants: tuple[Named, ...]
    text: str = ""
    tuning: Tuning | None = None
    line: str = ""

    def __post_init__(self) -> None:
        if self.tuning is None:
            return
        for variant in self.variants:
            both = [name for name in self.tuning.fields if name in variant.changes]
            if both:
                raise ConfigError(f"{both[0]} is tuned, but variant {quoted(variant.name)} sets it; leave out one")
        shared = set(self.tuning.seeds) & set(self.question.seeds)
        if shared:
            raise ConfigError(f"tune.seeds and seeds both have {min(shared)}; values are tuned with seeds of their own")

    @property
    def margin(self) -> float | None:
        """In the metric's own unit, of which a point of accuracy is 0.01."""
        margin = self.question.margin
        return margin if margin is None or not self.question.metric.endswith("accuracy") else margin / 100

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file; raises `ConfigError`, in a sentence that names what is wrong where."""
        text = read_text(path, ConfigError)
        try:
            return cls.from_toml(text, path)
        except ConfigError as error:
            message = str(error)
            raise ConfigError(message if str(path) in message else f"{path}: {message}") from None

    @classmethod
    def from_toml(cls, text: str, path: Path = Path("study.toml")) -> Self:
        """From the text of a file; raises `ConfigError`."""
        values = parse_toml(text)
        own = [f.name for f in fields(Question)]
        refuse_unknown(values, [*own, "base", "factor", "variant", "tune", "run"], "part of a study")
        asked = {"name": path.stem} | {name: values[name] for name in own if name in values}
        question = Question(**asked)
        run = _table(values, "run")
        refuse_unknown(run, [f.name for f in fields(Running)], "field of [run]")
        base = _table(values, "base")
        alone = list(base) == ["recipe"] and isinstance(base["recipe"], str)
        found = read_recipe(base["recipe"]) if alone else fields_of(base, path)
        if "seed" in found:
            raise ConfigError(
                "the base has a seed, but each variant is trained with each of the study's seeds; drop it"
            )
        factors = [_factor(name, table) for name, table in _table(values, "factor").items()]
        listed = {name: _changes(table, f"variant {quoted(name)}") for name, table in _table(values, "variant").items()}
        tuning = _tuning(_table(values, "tune"), question.metric) if "tune" in values else None
        return cls(question, Running(**run), found, expand(question.design, factors, listed), text, tuning)


def from_flags(
    vary: Sequence[str],
    base: Mapping[str, Any],
    running: Running,
    asked: Mapping[str, Any] | None = None,
    tune: Sequence[str] = (),
) -> Study:
    """The grid that flags name, each `FIELD=VALUE,VALUE,...`, the first value for the base. Raises `ConfigError`."""
    factors = [
        _factor(name.rpartition(".")[2], {"levels": {name: values}})
        for name, values in (_field_and_values("--vary", words) for words in vary)
    ]
    known = {"name": "-".join(factor.name for factor in factors)[:80], "design": "grid"} | dict(asked or {})
    question = Question(**known)
    tuning = tuning_of_flags(tune, question.metric) if tune else None
    return Study(question, running, base, expand(question.design, factors, {}), tuning=tuning)


def tuning_of_flags(tune: Sequence[str], metric: str) -> Tuning:
    """What is tuned by flags, each `FIELD=VALUE,VALUE,...`, for a study of a metric. Raises `ConfigError`."""
    return _tuning(dict(_field_and_values("--tune", words) for words in tune), metric)


def _field_and_values(flag: str, words: str) -> tuple[str, list[Any]]:
    name, sign, rest = words.partition("=")
    if not sign:
        raise ConfigError(f"{flag} is {quoted(words)}; it must be FIELD=VALUE,VALUE,... such as optimizer.lr=0.1,0.2")
    return name, values_of(rest)


def _tuning(table: dict[str, Any], metric: str) -> Tuning:
    """`[tune]`; chosen by the loss where the study is of one, else by the accuracy."""
    own = {name: table.pop(name) for name in ("seeds", "metric") if name in table}
    fields = _changes(table, "[tune]")
    for name, values in fields.items():
        if not isinstance(values, list) or len(values) < 2 or len({repr(value) for value in values}) < len(values):
            raise ConfigError(f"[tune]: {name} is {quoted(values)}; it must be a list of two or more unlike values")
    usual: dict[str, Any] = {"metric": "val_loss" if metric.endswith("loss") else "val_accuracy"}
    return Tuning({name: tuple(values) for name, values in fields.items()}, **usual | own)


def values_of(text: str) -> list[Any]:
    """Values between commas, as TOML has them or else words; a list stands in brackets, None is a field left out."""
    found: list[Any] = []
    for word in map(str.strip, re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text)):
        try:
            read = parse_toml(f"value = {word}")
        except ConfigError:
            read = {}
        found.append(read["value"] if read.keys() == {"value"} else None if word == "None" else word)
    return found


# -- from factors to variants ------------------------------------------------------------------------------------------


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {quoted(found)}; it must be a table, [{name}]")
    return found


def full_name(name: str) -> str:
    """The dotted name of a recipe's field, of which the last word is enough where one field alone has it."""
    if name in (*NAMES, "model.preset"):
        return name
    same = [known for known in NAMES if known.rpartition(".")[2] == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise ConfigError(f"{quoted(name)} is the name of several fields: {', '.join(same)}; write it in full")
    if name in SECTIONS:
        raise ConfigError(f"{quoted(name)} is a table of a recipe; name one of its fields, as {name}.FIELD")
    lasts = [known.rpartition(".")[2] for known in NAMES]
    raise ConfigError(f"{quoted(name)} is not a field of a recipe{nearest(name, [*NAMES, *lasts])}")


def _changes(table: Any, where: str) -> dict[str, Any]:
    """Dotted name to value; tables may be written out as in a recipe."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {quoted(table)}; it must be a table of fields of the recipe")
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= {f"{name}.{inner}": part for inner, part in value.items()} if isinstance(value, dict) else {name: value}
    try:
        found = {full_name(name): value for name, value in flat.items()}
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name in _OWN:
        if name in found:
            raise ConfigError(f"{where} changes {name}, which all variants of a study have in common; leave it out")
    return found


def _factor(name: str, table: Any) -> Factor:
    where = f"factor {quoted(name)}"
    if not isinstance(table, dict) or set(table) not in ({"on", "off"}, {"levels"}):
        raise ConfigError(f"{where} must have on and off, or levels, each a table of fields of the recipe")
    if "levels" not in table:
        return Factor(name, tuple(Level(key, _changes(table[key], f"{where}, {key}")) for key in ("off", "on")))
    lists = _changes(table["levels"], where)
    if not lists or any(not isinstance(values, list) or len(values) < 2 for values in lists.values()):
        raise ConfigError(f"{where} needs fields with a list of two values or more each")
    if len({len(values) for values in lists.values()}) > 1:
        raise ConfigError(f"{where} has fields with unlike numbers of values; value i of each makes level i")
    levels = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    found = tuple(Level(" ".join(_word(value) for value in level.values()), level) for level in levels)
    if len({level.name for level in found}) < len(found):
        raise ConfigError(f"{where} has a level twice")
    return Factor(name, found)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "x".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def expand(design: Design, factors: Sequence[Factor], listed: Mapping[str, Mapping[str, Any]]) -> tuple[Named, ...]:
    """The variants of a design, the base first; raises `ConfigError` where factors or list do not go with it."""
    if (design == "list") != bool(listed) or (design == "list") == bool(factors):
        needs = "[variant.NAME] tables and no factors" if design == "list" else "[factor.NAME] tables and no variants"
        raise ConfigError(f"a study of design {design} needs {needs}")
    if design == "list":
        found = [Named(name, {}, changes) for name, changes in listed.items()]
    elif design in ("ablate", "add"):
        found = _one_at_a_time(design == "add", factors)
    else:
        count = math.prod(len(factor.levels) for factor in factors)
        if count > MOST_VARIANTS:
            raise ConfigError(f"the factors make {count:,} variants, and a study has at most {MOST_VARIANTS:,}")
        found = [_combined(factors, levels) for levels in itertools.product(*(factor.levels for factor in factors))]
    if len(found) < 2:
        raise ConfigError("a study needs two variants or more")
    return tuple(found)


def _one_at_a_time(add: bool, factors: Sequence[Factor]) -> list[Named]:
    for factor in factors:
        if [level.name for level in factor.levels] != ["off", "on"]:
            raise ConfigError(f"factor {quoted(factor.name)} has levels, which are for the designs grid and factorial")
    usual = [factor.levels[not add] for factor in factors]
    found = [_combined(factors, usual, "base" if add else "full")]
    for place, factor in enumerate(factors):
        other = [*usual[:place], factor.levels[add], *usual[place + 1 :]]
        found.append(_combined(factors, other, f"{'+' if add else 'no '}{factor.name}"))
    return found


def _combined(factors: Sequence[Factor], levels: Sequence[Level], name: str = "") -> Named:
    changes: dict[str, Any] = {}
    for factor, level in zip(factors, levels, strict=True):
        for field_name, value in level.changes.items():
            if field_name in changes and changes[field_name] != value:
                raise ConfigError(f"factor {quoted(factor.name)} and one before it both set {field_name}")
            changes[field_name] = value
    pairs = {factor.name: level.name for factor, level in zip(factors, levels, strict=True)}
    return Named(name or " ".join(f"{one}={other}" for one, other in pairs.items()), pairs, changes)


# -- from variants to recipes ------------------------------------------------------------------------------------------


def recipe_of(base: Mapping[str, Any], changes: Mapping[str, Any], catalog: Catalog) -> Recipe:
    """The recipe of a variant: what the data decides, the base over it, the changes over that. Raises `ConfigError`."""
    recipe = layered(base, changes, catalog)
    check_fit(recipe, catalog)
    return recipe


def recipes_of(study: Study, catalog: Catalog) -> dict[str, Recipe]:
    """Name of each variant to its recipe; raises `ConfigError` that names the variant which cannot be."""
    found = {}
    _refuse_missing_splits(study, catalog)
    for variant in study.variants:
        try:
            found[variant.name] = recipe_of(study.base, variant.changes, catalog)
        except ResiduumError as error:
            raise ConfigError(f"variant {quoted(variant.name)}: {error}") from None
        for metric in (study.question.metric, *([] if study.tuning is None else [study.tuning.metric])):
            if metric.startswith("val_"):
                refuse_without_val(found[variant.name], catalog, metric, f"variant {quoted(variant.name)}")
    return found


def tried_recipes(study: Study, catalog: Catalog) -> dict[str, tuple[Recipe, ...]]:
    """Name of each variant to its recipe with each combination that is tuned; raises `ConfigError` that names both."""
    found: dict[str, tuple[Recipe, ...]] = {}
    for variant in study.variants if study.tuning is not None else ():
        recipes = []
        for values in study.tuning.combinations if study.tuning is not None else ():
            try:
                recipes.append(recipe_of(study.base, {**variant.changes, **values}, catalog))
            except ResiduumError as error:
                where = f"variant {quoted(variant.name)} with {words_of(values)}"
                raise ConfigError(f"{where}: {error}") from None
        found[variant.name] = tuple(recipes)
    return found


def words_of(values: Mapping[str, Any]) -> str:
    """`lr=0.1 weight_decay=0.001`: fields by their last names."""
    return " ".join(f"{name.rpartition('.')[2]}={_word(value)}" for name, value in values.items())


def refuse_without_val(recipe: Recipe, catalog: Catalog, metric: str, what: str) -> None:
    """Raise `ConfigError` for a metric of the validation split where there is none."""
    held = "val" in split_files(catalog, recipe.data.holdout) if catalog.files else recipe.data.holdout > 0
    if not held:
        raise ConfigError(f"{what} holds out no images, and {metric} needs some")


def _has(catalog: Catalog, split: str) -> bool:
    return split in catalog.files if catalog.files else split == "test"


def _refuse_missing_splits(study: Study, catalog: Catalog) -> None:
    if study.question.metric.startswith("test_") and not _has(catalog, "test"):
        raise ConfigError(
            f"{quoted(catalog.name)} has no test split for {study.question.metric}; compare by metric = "
            f'"{study.question.metric.replace("test", "val")}"'
        )


def slug(name: str) -> str:
    """A name as a part of a folder's: letters, digits and signs; what is left out of long or unlike names is hashed."""
    plain = re.sub(r"[^A-Za-z0-9.+=_-]+", "-", name).strip("-.")
    if 0 < len(plain) <= 48:
        return plain
    return f"{plain[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")
