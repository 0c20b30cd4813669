"""The recipe: everything that decides the outcome of a training run, as data. No torch here.

A recipe is a dataclass of small ones. Every field has a dotted name, `optimizer.lr`, which is the same in TOML, on the
command line (`--optimizer.lr`) and in `Recipe.replace`. What does not change the outcome is in `execution.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import arg

from residuum.config import ResNetConfig
from residuum.data.catalog import Catalog, scan, split_files
from residuum.data.settings import SMALL_IMAGE, Augmentation, DataSettings
from residuum.errors import ConfigError, nearest, quoted
from residuum.files import read_text
from residuum.presets import preset
from residuum.train.recipes import named_recipe
from residuum.units import counted
from residuum.validation import AtLeast, Within, check, parse_toml, toml_lines

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights follow their gradients. A field that the optimizer does not know is refused."""

    # sgd; adamw (1711.05101); lamb (1904.00962), for large batches; muon: orthogonalised momentum for convolutions, SGD
    # for everything else
    name: Literal["sgd", "adamw", "lamb", "muon"] = "sgd"
    # peak learning rate
    lr: Annotated[float, Within("(0, 1000]"), arg(aliases=("--lr",))] = 0.1
    # sgd and muon: momentum; 0 is plain SGD
    momentum: Annotated[float, Within("[0, 1)")] = 0.9
    # sgd and muon: Nesterov's momentum
    nesterov: bool = True
    # adamw and lamb: how much the averages of gradients and of their squares keep at each step
    betas: Annotated[tuple[float, float], Within("[0, 1)")] = (0.9, 0.999)
    # adamw and lamb: what is added to the root of the squares; 1e-8 and 1e-6 where left out
    eps: Annotated[float | None, Within("(0, 1]")] = None
    # weight decay; decoupled from the gradient in adamw and for muon's convolutions
    weight_decay: Annotated[float, Within("[0, 1]"), arg(aliases=("--weight-decay",))] = 5e-4
    # what decays: weights, of convolutions and classifier, or all, norms and biases too
    decay: Literal["weights", "all"] = "weights"
    # factor of the learning rate of all biases
    bias_lr: Annotated[float, Within("[0, 1000]")] = 1.0
    # factor of the learning rate of the classifier
    head_lr: Annotated[float, Within("[0, 1000]")] = 1.0
    # factor of the learning rate for each layer below the head: a block is a layer, and the stem is one
    layer_decay: Annotated[float, Within("(0, 1]")] = 1.0
    # muon: factor of the learning rate of what SGD trains
    others_lr: Annotated[float, Within("[0, 1000]")] = 1.0
    # largest norm of all gradients together; where left out it is 1 for lamb and without bound for the others
    clip: Annotated[float | None, Within("(0, 1e9]")] = None
    # share that a step's statistics have in the running ones of batch norms
    norm_momentum: Annotated[float, Within("(0, 1]")] = 0.1

    def __post_init__(self) -> None:
        check(self, "optimizer")
        _refuse_idle(self, "optimizer", _OPTIMIZERS_OWN)


_MOMENTUM, _ADAPTIVE = ("sgd", "muon"), ("adamw", "lamb")
_OPTIMIZERS_OWN = {
    "momentum": _MOMENTUM, "nesterov": _MOMENTUM, "betas": _ADAPTIVE, "eps": _ADAPTIVE, "others_lr": ("muon",)
}  # fmt: skip


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves through the run: a straight rise to its peak, then what `name` says.

    Lengths are shares of the run where they are below 1, and numbers of epochs from 1 on.
    """

    # cosine: half a cosine down (1608.03983); linear: a straight line down; triangle: straight up from `warmup_start`
    # and straight down (1708.07120); step: times `factor` at each milestone; constant
    name: Literal["cosine", "linear", "triangle", "step", "constant"] = "cosine"
    # length of the rise
    warmup: Annotated[float, Within("[0, 1e6]")] = 0.1
    # share of the peak at which the rise begins
    warmup_start: Annotated[float, Within("[0, 1]")] = 0.0
    # learning rate that it falls to, and not below; not for constant
    min_lr: Annotated[float, Within("[0, 1000]")] = 0.0
    # step: when it falls, in rising order
    milestones: Annotated[tuple[float, ...], Within("(0, 1e6]")] = (0.5, 0.75)
    # step: what it is multiplied by
    factor: Annotated[float, Within("(0, 1)")] = 0.1

    def __post_init__(self) -> None:
        check(self, "schedule")
        _refuse_idle(self, "schedule", _SCHEDULES_OWN)


_SCHEDULES_OWN = {
    "min_lr": ("cosine", "linear", "triangle", "step"), "milestones": ("step",), "factor": ("step",)
}  # fmt: skip


@dataclass(frozen=True)
class LossSettings:
    """What training makes small."""

    # ce: cross-entropy; bce: binary cross-entropy, which asks for each class apart whether it is in the image
    name: Literal["ce", "bce"] = "ce"
    # share of the target that is spread over all classes
    label_smoothing: Annotated[float, Within("[0, 1)"), arg(aliases=("--label-smoothing",))] = 0.05
    # bce: a class with more than this share of a mixed image is wholly in it, others not at all (2110.00476); where
    # left out each is in it by its share
    threshold: Annotated[float | None, Within("[0, 1)")] = None
    # bce: add up the classes of an image, where their mean is taken otherwise
    sum_classes: bool = False

    def __post_init__(self) -> None:
        check(self, "loss")
        _refuse_idle(self, "loss", {"threshold": ("bce",), "sum_classes": ("bce",)})


@dataclass(frozen=True)
class MixingSettings:
    """Training on mixtures of two images. With both, a coin chooses for each batch."""

    # MixUp (1710.09412): both parameters of the Beta distribution that shares are drawn from; 0 is without
    mixup: Annotated[float, Within("[0, 1000]")] = 0.0
    # CutMix (1905.04899): the same for the area of the box that is cut out
    cutmix: Annotated[float, Within("[0, 1000]")] = 0.0
    # share of the run, its last, without mixing
    off: Annotated[float, Within("[0, 1)")] = 0.0

    def __post_init__(self) -> None:
        check(self, "mixing")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if 0 < value < LEAST_MIXING:
                raise ConfigError(f"mixing.{name} is {value:g}; it must be 0 or at least {LEAST_MIXING:g}")


LEAST_MIXING = 0.001  # below it Beta distributions are not drawn well in single precision


@dataclass(frozen=True)
class AverageSettings:
    """A moving average of the weights, which is then evaluated and saved in place of the last ones."""

    # share of the run's steps that the average reaches back; 0 keeps no average
    window: Annotated[float, Within("[0, 1)")] = 0.0
    # running statistics of norms and other buffers: average them as weights, or copy the network's
    buffers: Literal["average", "copy"] = "average"

    def __post_init__(self) -> None:
        check(self, "average")


@dataclass(frozen=True)
class FinetuneSettings:
    """Weights that training starts from, and which parts of the network learn."""

    # file, run folder or reference, such as torchvision:resnet50.IMAGENET1K_V2; left out, the network starts from
    # nothing
    weights: Annotated[str | None, arg(aliases=("--weights",))] = None
    # which network of a file that holds several
    prefix: str | None = None
    # SHA-256 of the weights, written down when a run begins; others are then refused
    sha256: str | None = None
    # number of parts from the input that do not learn, statistics of their norms included: 1 is the stem, 2 the first
    # stage too, and so on
    freeze: Annotated[int, AtLeast(0), arg(aliases=("--freeze",))] = 0
    # when frozen parts learn again: after a share of the run below 1, after so many epochs from 1 on; 0 is never
    thaw: Annotated[float, Within("[0, 1e6]")] = 0.0
    # classifier: auto keeps that of the weights where it is for the same classes, and starts a new one otherwise; new;
    # zero starts one at 0 (1912.11370)
    head: Literal["auto", "new", "zero"] = "auto"

    def __post_init__(self) -> None:
        check(self, "finetune")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if self.weights is None and value != f.default:
                raise ConfigError(
                    f"finetune.{f.name} is {quoted(value)}, but there are no weights to start from; name them by "
                    "--weights"
                )
        if self.thaw and not self.freeze:
            raise ConfigError(f"finetune.thaw is {self.thaw:g}, but nothing is frozen; set finetune.freeze")


@dataclass(frozen=True)
class Recipe:
    """What is trained on what, how, and how long. Checked when it is made; raises `ConfigError`."""

    # passes over the training images
    epochs: Annotated[int, AtLeast(1)] = 30
    # images in a step
    batch_size: Annotated[int, AtLeast(2)] = 64
    # images that share batch norm's statistics, mixing and dropped branches: a step is cut into chunks of so many, and
    # a process has whole ones; where left out, a process's share when the run begins
    norm_batch: Annotated[int | None, AtLeast(2)] = None
    # of initialisation, order, augmentation and dropout
    seed: Annotated[int, AtLeast(0, 2**63 - 1)] = 0
    # fp32, bf16, or auto, which is bf16 where the device computes it
    precision: Precision = "auto"
    # compile training steps by torch.compile: they take less time after a minute or two of compiling, which pays for
    # long runs of small networks. Dropout and dropped branches are other draws than without
    compile: bool = False
    # the network; any field of the preset can be changed, --model.width 0.5
    model: ResNetConfig = field(default_factory=lambda: preset("digits_resnet"))
    # which images, and how they are split
    data: DataSettings = field(default_factory=DataSettings)
    # how training images vary
    augment: Augmentation = field(default_factory=lambda: Augmentation(pad=1))
    # how weights follow their gradients
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    # how the learning rate moves
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    # what training makes small
    loss: LossSettings = field(default_factory=LossSettings)
    # training on mixtures of two images
    mixing: MixingSettings = field(default_factory=MixingSettings)
    # a moving average of the weights
    average: AverageSettings = field(default_factory=AverageSettings)
    # weights that training starts from
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        check(self)
        self._check_finetune()
        if self.norm_batch is not None and self.batch_size % self.norm_batch:
            raise ConfigError(
                f"norm_batch is {self.norm_batch}, and a batch of {self.batch_size} images does not divide into chunks "
                "of it; give a --norm-batch that divides --batch-size"
            )
        schedule = self.schedule
        if schedule.warmup >= self.epochs:
            raise ConfigError(
                f"schedule.warmup is {counted(schedule.warmup, 'epoch')} but the run has {self.epochs}; give a "
                "share below 1, or more epochs"
            )
        if schedule.min_lr > self.optimizer.lr:
            raise ConfigError(f"schedule.min_lr is {schedule.min_lr:g}, above optimizer.lr, {self.optimizer.lr:g}")
        if schedule.name == "step":
            self._check_milestones()

    def _check_milestones(self) -> None:
        given = self.schedule.milestones
        epochs = [place if place >= 1 else place * self.epochs for place in given]
        if epochs != sorted(set(epochs)):
            raise ConfigError(f"schedule.milestones is {quoted(given)}; each must come after the one before it")
        if epochs and epochs[-1] >= self.epochs:
            raise ConfigError(
                f"schedule.milestones has {counted(given[-1], 'epoch')} but the run has {self.epochs}; give shares "
                "below 1, or more epochs"
            )

    def _check_finetune(self) -> None:
        settings, stages = self.finetune, len(self.model.depths)
        if settings.freeze > stages + 1:
            raise ConfigError(
                f"finetune.freeze is {settings.freeze}; it must be at most {stages + 1}, the stem and all {stages} "
                "stages"
            )
        if settings.thaw >= max(self.epochs, 1):
            raise ConfigError(
                f"finetune.thaw is {counted(settings.thaw, 'epoch')} but the run has {self.epochs}; give a share "
                "below 1, or more epochs"
            )

    @classmethod
    def default(
        cls,
        data: str | Path | Catalog = "digits",
        model: str | None = None,
        weights: str | Path | None = None,
        prefix: str | None = None,
        holdout: float | None = None,
        over: Mapping[str, Any] | None = None,
    ) -> Self:
        """What `residuum train --data ...` does by itself: a network and a schedule that fit the data.

        `data` is a dataset's name, a folder or its catalog; `model` is a preset in place of the usual one. With
        `weights` to start from, which `prefix` chooses in a file of several, the network is theirs, images are
        looked at as they want it, and the named recipe `finetune` goes over that of the data; it goes by the number of
        training images, which `holdout` decides. Without weights the named recipe `small-images` goes over that of
        small ones; but where `over`, the fields by dotted name that will replace some of this recipe's, names another
        optimizer or schedule than that one does, the rest of its table is as in a new recipe. An optimizer that `over`
        names without a learning rate has the usual one for it, as much higher or lower as this recipe's is than what
        is usual for its own. Raises `DataError` for data that cannot be found, `ConfigError` for an unknown preset or
        one that the weights are not of, and `WeightsError` for weights that cannot be read.
        """
        catalog = data if isinstance(data, Catalog) else scan(str(data))
        fields = {"data.path": catalog.name} | _usual(catalog, holdout, tuned=weights is not None)
        usual = fields.pop("model.preset", None)  # fine-tuning has that of the weights
        if holdout is not None:
            fields["data.holdout"] = holdout
        if weights is not None:
            from residuum.train.start import fields_of_weights  # only then is torch needed

            recipe = cls().replace(fields | fields_of_weights(str(weights), prefix, model, catalog))
        else:
            config = preset(model or usual).replace(in_channels=catalog.channels, num_classes=len(catalog.classes))
            recipe = cls(model=config).replace(beneath(fields, over or {}))
        return recipe.replace(_rates(recipe.optimizer, over or {}))

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
    "mixing": MixingSettings,
    "average": AverageSettings,
    "finetune": FinetuneSettings,
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


def _refuse_idle(settings: Any, section: str, own: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `ConfigError` for a field that has been changed and that `settings.name` would not look at."""
    for f in dataclasses.fields(settings):
        names = own.get(f.name)
        if names is not None and settings.name not in names and getattr(settings, f.name) != f.default:
            raise ConfigError(
                f"{section}.{f.name} is {quoted(getattr(settings, f.name))}, which is for {' and '.join(names)}, but "
                f"{section}.name is {settings.name}; leave it out, or at {quoted(f.default)}"
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


def beneath(fields: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe by dotted name, those that hold where `over` goes over them.

    A table that names an optimizer or a schedule is for that one, its learning rate above all: where `over` names
    another, nothing of the table is left.
    """
    gone = {
        section
        for section in ("optimizer", "schedule")
        if (name := f"{section}.name") in fields and over.get(name, fields[name]) != fields[name]
    }
    return {name: value for name, value in fields.items() if name.partition(".")[0] not in gone}


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted name to both values, of the fields in which two recipes differ."""
    pairs = ((name, _value(one, name), _value(other, name)) for name in NAMES)
    return {name: (a, b) for name, a, b in pairs if a != b}


# -- defaults of the data ----------------------------------------------------------------------------------------------

_PHOTOGRAPHS: dict[str, Any] = {
    "model.preset": "resnet18", "epochs": 90, "schedule.warmup": 0.05,
    "augment.crop_scale": (0.08, 1.0), "augment.pad": 0, "augment.flip": "random",
}  # fmt: skip


def _usual(catalog: Catalog, holdout: float | None, *, tuned: bool) -> dict[str, Any]:
    """The fields in which the recipe that goes with a dataset differs from a new one, maybe `model.preset` among them.

    `tuned` is whether training starts from weights.
    """
    named = "finetune" if tuned else None
    if catalog.name == "digits":
        fields: dict[str, Any] = {"model.preset": "digits_resnet"}
    elif max(catalog.image_size) <= SMALL_IMAGE:
        fields, named = {"augment.pad": 4, "augment.flip": "random"}, named or "small-images"
    else:
        fields = dict(_PHOTOGRAPHS)
    if named is not None:
        fields |= named_recipe(named).fields_for(train_images(catalog, holdout))
    if catalog.name == "fashion-mnist":
        fields["augment.pad"] = 2  # of 28x28
    if catalog.several:
        fields["loss.name"] = "bce"
    return fields


_USUAL_RATES = {"sgd": 0.1, "adamw": 0.001, "lamb": 0.005, "muon": 0.01}


def _rates(own: OptimizerSettings, over: Mapping[str, Any]) -> dict[str, Any]:
    """Name and rates of the optimizer that will take the place of `own`."""
    name = over.get("optimizer.name")
    if not isinstance(name, str) or name not in _USUAL_RATES or name == own.name:
        return {}
    rate = own.lr * _USUAL_RATES[name] / _USUAL_RATES[own.name]
    found = {"optimizer.name": name, "optimizer.lr": float(f"{rate:.6g}")}
    if name == "muon":
        found["optimizer.others_lr"] = _USUAL_RATES["sgd"] / _USUAL_RATES["muon"]
    return found


def train_images(catalog: Catalog, holdout: float | None = None) -> int:
    """How many images are trained on; of a named dataset, whose images are split as they are read, about so many."""
    holdout = DataSettings.holdout if holdout is None else holdout
    if catalog.files:
        return len(split_files(catalog, holdout)["train"])
    return round(_IMAGES[catalog.name] * (1 - holdout))


_IMAGES = {"digits": 1438, "cifar10": 50_000, "cifar100": 50_000, "fashion-mnist": 60_000}  # not for testing


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
    if catalog.several and recipe.loss.name != "bce":
        raise ConfigError(
            f"loss.name is {recipe.loss.name}, which is for images of one class, but those of {quoted(catalog.name)} "
            "may be of several; take bce"
        )


# -- recipe files ------------------------------------------------------------------------------------------------------


def read_recipe(source: str | Path) -> dict[str, Any]:
    """What a recipe file says, by dotted name; raises `ConfigError`. `model.preset` may be among it.

    A file holds any part of a recipe: what it leaves out, the data decides. Of a named recipe, and of one that a file
    goes over by `recipe = "NAME"`, there is only the name, as `recipe`: `with_named` has what it says, which goes by
    the number of training images.
    """
    path = Path(source)
    if path.name == str(source) and not path.suffix and len(path.name) < 100 and not path.is_file():
        named_recipe(path.name)
        return {"recipe": path.name}
    text = read_text(path, ConfigError)
    try:
        values = parse_toml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return fields_of(values, path)


def with_named(parts: Mapping[str, Any], images: int | None = None) -> dict[str, Any]:
    """The fields of `read_recipe`, those of the named recipe for so many images beneath them."""
    own = {name: value for name, value in parts.items() if name != "recipe"}
    if "recipe" not in parts:
        return own
    return beneath(named_recipe(parts["recipe"]).fields_for(images), own) | own


def layers(
    under: Mapping[str, Any], over: Mapping[str, Any], count: Callable[[], int]
) -> tuple[dict[str, Any], str | None]:
    """The fields of `read_recipe` with others over them, and the preset among them, if any.

    `count` says how many images are trained on; it is asked where a named recipe may go by that.
    """
    parts = {**beneath(under, over), **over}
    values = with_named(parts, count() if "recipe" in parts else None)
    model = values.pop("model.preset", None)
    return values, parts.get("model.preset") if _from_weights(parts) else model  # weights bring their own network


def layered(under: Mapping[str, Any], over: Mapping[str, Any], catalog: Catalog) -> Recipe:
    """The recipe of what the data decides, the fields of `read_recipe` over it, and others over both.

    Weights in `over` are not those of the digest that `under` may have. Raises `ConfigError`, and what
    `Recipe.default` raises.
    """
    if any(name in over and over[name] != under.get(name) for name in ("finetune.weights", "finetune.prefix")):
        under = {name: value for name, value in under.items() if name != "finetune.sha256"}
    share = over.get("data.holdout", under.get("data.holdout"))
    holdout = None if share is None else DataSettings(holdout=share).holdout
    values, model = layers(under, over, lambda: train_images(catalog, holdout))
    values.pop("data.path", None)  # it is the catalog's name
    if model is not None:
        preset(model)  # a wrong name is told before anything else
    weights, prefix = values.get("finetune.weights"), values.get("finetune.prefix")
    if weights is None and _from_weights(under):
        raise ConfigError(f"the recipe {under['recipe']} starts from weights; name them by --weights")
    return Recipe.default(catalog, model, weights, prefix, holdout, values).replace(values)


def _from_weights(parts: Mapping[str, Any]) -> bool:
    return "recipe" in parts and named_recipe(parts["recipe"]).from_weights


def fields_of(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the tables of a recipe file say, by dotted name, as `read_recipe` gives it; `path` is named in errors."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTIONS and not isinstance(value, dict):
            example = "preset" if name == "model" else dataclasses.fields(SECTIONS[name])[0].name
            raise ConfigError(
                f"{name} in {path} is {quoted(value)}; it must be a table: [{name}] with a line {example} = ..."
            )
        found |= {f"{name}.{inner}": part for inner, part in value.items()} if name in SECTIONS else {name: value}
    try:
        if "recipe" in found:
            named_recipe(found["recipe"])
        for name in found:
            if name not in ("recipe", "model.preset"):
                _know(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name in ("model.preset", "data.path"):
        if not isinstance(found.get(name, ""), str):
            raise ConfigError(f"{name} in {path} is {quoted(found[name])}; it must be text")
    return found
