"""The recipe: everything that decides the outcome of a training run, as data. No torch here."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from residuum.config import ResNetConfig
from residuum.data.catalog import NAMED, SMALL_IMAGE, Facts, Folder
from residuum.errors import ConfigError
from residuum.files import read_text
from residuum.presets import preset
from residuum.units import parse_size
from residuum.validation import AtLeast, Within, check, parse_toml, refuse_unknown, toml_lines

Precision = Literal["auto", "fp32", "bf16"]
_DIGITS = preset("digits_resnet")


@dataclass(frozen=True)
class Recipe:
    """What is trained on what, and how long. Checked when it is made; raises `ConfigError`."""

    # digits, cifar10, cifar100, fashion-mnist, or an image folder with train/ and test/ or val/ inside
    data: str = "digits"
    # the network; any field of the preset can be changed, --model.width 0.5
    model: ResNetConfig = _DIGITS
    # passes over the training images
    epochs: Annotated[int, AtLeast(1)] = 30
    # images in a step
    batch_size: Annotated[int, AtLeast(2)] = 64
    # peak learning rate of SGD with Nesterov momentum
    lr: Annotated[float, Within("(0, 1000]")] = 0.1
    # momentum of SGD
    momentum: Annotated[float, Within("[0, 1)")] = 0.9
    # weight decay of convolutions and classifier; norms and biases have none
    weight_decay: Annotated[float, Within("[0, 1]")] = 5e-4
    # share of the steps in which the learning rate rises; then it falls along a cosine
    warmup: Annotated[float, Within("[0, 1)")] = 0.1
    # share of the target that is spread over all classes
    label_smoothing: Annotated[float, Within("[0, 1)")] = 0.05
    # training images of one small size are shifted by up to this many pixels
    pad: Annotated[int, AtLeast(0)] = 1
    # mirror half of the training images
    flip: bool = False
    # pixels per side for image folders; 0 is the images' own size if they share a small one, else 224
    image_size: Annotated[int, AtLeast(0)] = 0
    # of initialisation, order and augmentation
    seed: Annotated[int, AtLeast(0, 2**63 - 1)] = 0
    # cpu, cuda, cuda:1, mps, ...; auto is the accelerator if there is one
    device: str = "auto"
    # auto is bf16 where the device computes it
    precision: Precision = "auto"
    # budget such as 4GB that a step is made to fit by recomputing; auto is what is free; empty keeps everything
    memory: str = ""
    # processes that read image files
    workers: Annotated[int, AtLeast(0)] = 2
    # go on without image files that cannot be decoded
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.memory not in ("", "auto"):
            parse_size(self.memory)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked as a new one is."""
        return dataclasses.replace(self, **changes)

    def to_toml(self) -> str:
        """One line per field, the model's in a table of their own."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "model"}
        return f"{toml_lines(values)}\n[model]\n{self.model.to_toml()}"

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of `to_toml`."""
        values = parse_toml(text)
        refuse_unknown(values, (f.name for f in dataclasses.fields(cls)), "field of a recipe")
        return cls(**values | {"model": ResNetConfig.from_dict(values.get("model", {}))})


_SMALL: dict[str, Any] = {"epochs": 30, "batch_size": 128, "lr": 0.4, "pad": 4, "flip": True}
_BY_DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits_resnet", {}),
    "cifar10": ("cifar_resnet20", _SMALL),
    "cifar100": ("cifar_resnet56", _SMALL),
    "fashion-mnist": ("cifar_resnet20", _SMALL | {"pad": 2}),
}
_FOLDER: tuple[str, dict[str, Any]] = ("resnet18", {"epochs": 90, "lr": 0.1, "warmup": 0.05, "flip": True, "pad": 4})


def default_recipe(facts: Facts, model: str | None = None) -> Recipe:
    """What `residuum train --data ...` does by itself: a network and schedule that fit the data."""
    small = isinstance(facts, Folder) and 0 < facts.side <= SMALL_IMAGE
    name, fields = _BY_DATA.get(facts.name, _BY_DATA["cifar10"] if small else _FOLDER)
    config = preset(model or name).replace(in_channels=facts.channels, num_classes=len(facts.classes))
    return Recipe(data=facts.name, model=config).replace(**fields)


def recipe_file(path: Path) -> dict[str, Any]:
    """The table in a recipe file, its names checked; `[model]` may name a `preset` beside fields to change."""
    text = read_text(path, ConfigError)
    try:
        values = parse_toml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    refuse_unknown(values, (f.name for f in dataclasses.fields(Recipe)), f"field of a recipe, in {path}")
    model = values.get("model", {})
    if not isinstance(model, dict):
        raise ConfigError(f"model in {path} is {model!r}; it must be a table: [model] with a line preset = {model!r}")
    known = ["preset", *(f.name for f in dataclasses.fields(ResNetConfig))]
    refuse_unknown(model, known, f"field of [model], in {path}")
    if not isinstance(values.get("data", ""), str):
        raise ConfigError(f"data in {path} is {values['data']!r}; it must be text")
    return values


def with_file(base: Recipe, values: dict[str, Any]) -> Recipe:
    """`base` with what a recipe file says."""
    fields = {name: value for name, value in values.items() if name not in ("data", "model")}
    model = {name: value for name, value in values.get("model", {}).items() if name != "preset"}
    return base.replace(**fields, model=base.model.replace(**model))


def check_fit(recipe: Recipe, facts: Facts) -> None:
    """Raise `ConfigError` where the network cannot take this data."""
    classes, named = len(facts.classes), facts.name in NAMED
    if recipe.model.num_classes != classes:
        raise ConfigError(
            f"model.num_classes is {recipe.model.num_classes} but {facts.name} has {classes}; leave it out"
        )
    if named and recipe.model.in_channels != facts.channels:
        raise ConfigError(
            f"model.in_channels is {recipe.model.in_channels} but {facts.name} has {facts.channels}; leave it out"
        )
