"""Published recipes by name: what they say as fields of a recipe, what they reached, where that is written. No torch.

A named recipe holds a part of a recipe, as a recipe file does: what it leaves out, the data decides. `differs` says
where ours still departs from what was published; `reproduced` is empty until a run of ours has shown the figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from residuum.errors import ConfigError, nearest, quoted


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe of a paper or library. `fields` go by dotted name, with `model.preset` among them."""

    title: str
    data: str
    fields: Mapping[str, Any]
    source: str
    # preset to published top-1 accuracy in percent
    top1: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    differs: tuple[str, ...] = ()
    # run, seeds and hours that reached it here, or empty
    reproduced: str = ""


_HE: dict[str, Any] = {
    "model.zero_init_residual": False,
    "optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": False,
    "optimizer.weight_decay": 1e-4, "optimizer.decay": "all",
    "schedule.name": "step", "schedule.warmup": 0.0, "schedule.factor": 0.1,
    "loss.name": "ce", "loss.label_smoothing": 0.0,
    "augment.flip": True,
}  # fmt: skip

RECIPES: Mapping[str, NamedRecipe] = MappingProxyType(
    {
        "he2015": NamedRecipe(
            title="He et al. on ImageNet, as torchvision's first weights were trained",
            data="ImageNet-1k",
            fields=_HE
            | {"model.preset": "resnet50", "epochs": 90, "batch_size": 256, "schedule.milestones": (30.0, 60.0)}
            | {"data.image_size": (224, 224)},
            source="1512.03385; torchvision's IMAGENET1K_V1",
            top1={"resnet18": 69.758, "resnet34": 73.314, "resnet50": 76.130, "resnet101": 77.374, "resnet152": 78.312},
        ),
        "he2015-cifar": NamedRecipe(
            title="He et al. on CIFAR-10: 64,000 steps on 45,000 images",
            data="CIFAR-10",
            fields=_HE
            | {"model.preset": "cifar_resnet20", "epochs": 182, "batch_size": 128, "schedule.milestones": (0.5, 0.75)}
            | {"augment.pad": 4},
            source="1512.03385, section 4.2 and table 6",
            top1={
                "cifar_resnet20": 91.25,
                "cifar_resnet32": 92.49,
                "cifar_resnet44": 92.83,
                "cifar_resnet56": 93.03,
                "cifar_resnet110": 93.57,
            },
            differs=("110 layers began with 400 steps at a rate of 0.01",),
        ),
    }
)


def named_recipe(name: str) -> NamedRecipe:
    """The recipe of that name; raises `ConfigError` with the nearest ones where there is none."""
    if name not in RECIPES:
        hint = nearest(name, RECIPES) or f"; there are {', '.join(RECIPES)}"
        raise ConfigError(f"{quoted(name)} is not a named recipe{hint}")
    return RECIPES[name]
