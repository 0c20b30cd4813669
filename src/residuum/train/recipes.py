"""Published recipes by name: what they say as fields of a recipe, what they reached, where that is written. No torch.

A named recipe holds a part of a recipe, as a recipe file does: what it leaves out, the data decides. `differs` says
where ours still departs from what was published; `reproduced` is empty until a run of ours has shown the figure.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from residuum.errors import ConfigError, nearest, quoted
from residuum.validation import toml_lines


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, of a paper or library where `source` is one. `fields` go by dotted name, maybe `model.preset` too."""

    title: str
    data: str
    fields: Mapping[str, Any]
    source: str
    # preset to published top-1 accuracy in percent; none where no figure was published
    top1: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    differs: tuple[str, ...] = ()
    # run, seeds and hours that reached it here, or empty
    reproduced: str = ""
    # whether it starts from weights, which bring their own network
    from_weights: bool = False
    # what changes with the number of training images
    sized: Callable[[int], Mapping[str, Any]] | None = None

    def fields_for(self, images: int | None) -> dict[str, Any]:
        """The fields for so many training images; as they stand where that is not known."""
        return dict(self.fields) | dict(self.sized(images) if self.sized is not None and images is not None else {})

    def to_toml(self) -> str:
        """The fields in tables, as a recipe file has them."""
        tables: dict[str, Any] = {}
        for name, value in self.fields.items():
            section, _, inner = name.rpartition(".")
            (tables.setdefault(section, {}) if section else tables)[inner] = value
        flat = {name: value for name, value in tables.items() if not isinstance(value, dict)}
        return toml_lines(flat | tables)  # a table would swallow what comes after it


_CROPPED: dict[str, Any] = {"augment.crop_scale": (0.08, 1.0), "augment.flip": "random"}
_PHOTOGRAPHS: dict[str, Any] = _CROPPED | {"data.image_size": (224, 224)}

_HE: dict[str, Any] = {
    "model.zero_init_residual": False,
    "optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": False,
    "optimizer.weight_decay": 1e-4, "optimizer.decay": "all",
    "schedule.name": "step", "schedule.warmup": 0.0, "schedule.factor": 0.1,
    "loss.name": "ce", "loss.label_smoothing": 0.0,
}  # fmt: skip

_RSB: dict[str, Any] = _PHOTOGRAPHS | {
    "model.preset": "resnet50", "batch_size": 2048, "data.crop": 0.95, "data.interpolation": "bicubic",
    "optimizer.name": "lamb", "optimizer.weight_decay": 0.02,
    "schedule.name": "cosine", "schedule.warmup": 5.0, "schedule.min_lr": 1e-6,
    "loss.name": "bce", "loss.label_smoothing": 0.0, "loss.threshold": 0.2,
    "mixing.mixup": 0.1, "mixing.cutmix": 1.0,
}  # fmt: skip
_RSB_LONG: dict[str, Any] = _RSB | {
    "model.stochastic_depth": 0.05, "optimizer.lr": 5e-3, "augment.policy": "rand:2:21", "augment.repeats": 3,
}  # fmt: skip
_RSB_SOURCE = "2110.00476 and timm's weights"
_RSB_DIFFERS = (
    "timm's RandAugment has other operations and draws magnitudes around 7 of 10 (6 for A3); here 21 (18) of 30",
)

_FAST: dict[str, Any] = {
    "batch_size": 256, "augment.pad": 4, "augment.border": "reflect", "augment.flip": "alternate",
    "optimizer.name": "muon", "optimizer.lr": 0.08, "optimizer.momentum": 0.9, "optimizer.nesterov": True,
    "optimizer.weight_decay": 0.02, "optimizer.others_lr": 2.5,
    "schedule.name": "triangle", "schedule.warmup": 0.23, "schedule.warmup_start": 0.2,
    "loss.name": "ce", "loss.label_smoothing": 0.1,
}  # fmt: skip

_BIT: dict[str, Any] = {
    "optimizer.name": "sgd", "optimizer.lr": 0.003, "optimizer.momentum": 0.9, "optimizer.nesterov": False,
    "optimizer.weight_decay": 0.0,
    "schedule.name": "step", "schedule.warmup": 0.025, "schedule.milestones": (0.3, 0.6, 0.9), "schedule.factor": 0.1,
    "loss.name": "ce", "loss.label_smoothing": 0.0, "mixing.mixup": 0.1, "finetune.head": "zero",
}  # fmt: skip


def _bit(images: int) -> dict[str, Any]:
    """BiT's HyperRule: 500, 10,000 or 20,000 steps, and what goes with them."""
    steps = 500 if images < 20_000 else 10_000 if images < 500_000 else 20_000
    found: dict[str, Any] = {
        "epochs": round(steps / max(1, images // 512)) or 1,
        "schedule.warmup": min(500, steps // 5) / steps,
    }
    return found | ({"schedule.milestones": (0.4, 0.6, 0.8), "mixing.mixup": 0.0} if steps == 500 else {})


def _small(images: int) -> dict[str, Any]:
    """Smaller batches of fewer images, whose steps count for more than their size, and 3,000 steps of them at least.

    In a few steps an epoch, weights move on faster than running statistics by the usual share of a step.
    """
    batch = 256
    while batch > 32 and images < 32 * batch:
        batch //= 2
    follow = {"optimizer.norm_momentum": 0.3} if batch == 32 else {}
    return {"batch_size": batch, "epochs": _epochs(3000, images, batch, 30)} | follow


def _epochs(steps: int, images: int, batch: int, least: int) -> int:
    """How many epochs have so many steps, but at least `least` and at most 100."""
    return min(max(math.ceil(steps / max(1, images // batch)), least), 100)


def _finetuned(images: int) -> dict[str, Any]:
    """600 steps, in 10 to 100 epochs; of few images a batch that leaves none or next to none of them out."""
    batch = _BATCH
    if images < 32 * _BATCH:
        least = _BATCH // 2 if images < 4 * _BATCH else _BATCH * 3 // 4
        sizes = range(max(2, min(images, least)), min(max(images, 2), _BATCH) + 1)
        batch = min(sizes, key=lambda size: (images % size, -size))
    return {"batch_size": batch, "epochs": _epochs(600, images, batch, 10)}


_BATCH = 64

RECIPES: Mapping[str, NamedRecipe] = MappingProxyType(
    {
        "he2015": NamedRecipe(
            title="He et al. on ImageNet, as torchvision's first weights were trained",
            data="ImageNet-1k",
            fields=_HE
            | _PHOTOGRAPHS
            | {"model.preset": "resnet50", "epochs": 90, "batch_size": 256, "schedule.milestones": (30.0, 60.0)},
            source="1512.03385; torchvision's IMAGENET1K_V1",
            top1={"resnet18": 69.758, "resnet34": 73.314, "resnet50": 76.130, "resnet101": 77.374, "resnet152": 78.312},
        ),
        "he2015-cifar": NamedRecipe(
            title="He et al. on CIFAR-10: 64,000 steps on 45,000 images",
            data="CIFAR-10",
            fields=_HE
            | {"model.preset": "cifar_resnet20", "epochs": 182, "batch_size": 128, "schedule.milestones": (0.5, 0.75)}
            | {"augment.pad": 4, "augment.border": "mean", "augment.flip": "random"},
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
        "tv2": NamedRecipe(
            title="torchvision's second weights",
            data="ImageNet-1k",
            fields=_PHOTOGRAPHS
            | {
                "model.preset": "resnet50",
                "model.zero_init_residual": False,
                "epochs": 600,
                "batch_size": 1024,
                "data.crop": 0.9655,
                "augment.image_size": (176, 176),
                "augment.policy": "trivial",
                "augment.erase": 0.1,
                "augment.repeats": 4,
                "optimizer.name": "sgd",
                "optimizer.lr": 0.5,
                "optimizer.momentum": 0.9,
                "optimizer.nesterov": False,
                "optimizer.weight_decay": 2e-5,
                "schedule.name": "cosine",
                "schedule.warmup": 5.0,
                "schedule.warmup_start": 0.01,
                "loss.name": "ce",
                "loss.label_smoothing": 0.1,
                "mixing.mixup": 0.2,
                "mixing.cutmix": 1.0,
                "average.window": 0.0391,
            },
            source="torchvision's blog on its training primitives; IMAGENET1K_V2",
            top1={
                "resnet50": 80.858,
                "resnet101": 81.886,
                "resnet152": 82.284,
                "resnext50_32x4d": 81.198,
                "wide_resnet50_2": 81.602,
            },
            differs=("torchvision's rate moves once an epoch and its average every 32 steps; here every step",),
        ),
        "rsb-a1": NamedRecipe(
            title="ResNet strikes back, procedure A1",
            data="ImageNet-1k",
            fields=_RSB_LONG
            | {
                "epochs": 600,
                "optimizer.weight_decay": 0.01,
                "loss.label_smoothing": 0.1,
                "mixing.mixup": 0.2,
            },
            source=_RSB_SOURCE,
            top1={"resnet50": 80.4},
            differs=(*_RSB_DIFFERS, "targets are smoothed after the threshold, not before it"),
        ),
        "rsb-a2": NamedRecipe(
            title="ResNet strikes back, procedure A2",
            data="ImageNet-1k",
            fields=_RSB_LONG | {"epochs": 300},
            source=_RSB_SOURCE,
            top1={"resnet50": 79.828},
            differs=_RSB_DIFFERS,
        ),
        "rsb-a3": NamedRecipe(
            title="ResNet strikes back, procedure A3",
            data="ImageNet-1k",
            fields=_RSB
            | {
                "epochs": 100,
                "optimizer.lr": 8e-3,
                "augment.policy": "rand:2:18",
                "augment.image_size": (160, 160),
            },
            source=_RSB_SOURCE,
            top1={"resnet50": 78.052},
            differs=_RSB_DIFFERS,
        ),
        "rs": NamedRecipe(
            title="Revisiting ResNets, ResNet-RS-50 at 160 pixels",
            data="ImageNet-1k",
            fields=_CROPPED
            | {
                "model.preset": "resnetrs50",
                "model.activation": "silu",
                "model.dropout": 0.25,
                "epochs": 350,
                "batch_size": 4096,
                "data.image_size": (160, 160),
                "augment.policy": "rand:2:30",
                "optimizer.name": "sgd",
                "optimizer.lr": 1.6,
                "optimizer.momentum": 0.9,
                "optimizer.nesterov": False,
                "optimizer.weight_decay": 4e-5,
                "schedule.name": "cosine",
                "schedule.warmup": 5.0,
                "loss.name": "ce",
                "loss.label_smoothing": 0.1,
                "average.window": 0.0916,
            },
            source="2103.07579 and TensorFlow's resnetrs50_i160",
            top1={"resnetrs50": 79.1},
            differs=("TensorFlow's RandAugment has other operations, at 10, their largest magnitude; here 30 of 30",),
        ),
        "bit": NamedRecipe(
            title="Big Transfer's HyperRule: from BiT's weights to other images, by their number",
            data="ImageNet-1k",
            fields=_BIT
            | {
                "model.preset": "resnetv2_50x1_bit",
                "epochs": 8,
                "batch_size": 512,
                "data.image_size": (480, 480),
                "data.crop": 0.0,
                "augment.crop_scale": (0.879, 0.879),
                "augment.flip": "random",
            },
            source="1912.11370 and its authors' big_transfer",
            top1={"resnetv2_50x1_bit": 80.68},
            differs=(
                "a crop of 480 of 512 pixels is one of the same share of the area here, of varying shape",
                "the HyperRule takes images below 96 pixels at 128 of 160: data.image_size and augment.crop_scale 0.64",
            ),
            from_weights=True,
            sized=_bit,
        ),
        "fast-cifar": NamedRecipe(
            title="A short run on CIFAR-10: three wide blocks, and what of airbench a residual network can use",
            data="CIFAR-10",
            fields=_FAST | {"model.preset": "cifar_resnet8_wide", "epochs": 7},
            source="schedule, border and mirrors of 2404.00498, and orthogonalised momentum as airbench has it",
            differs=("airbench has a network without shortcuts, whitened inputs and settings of its own",),
        ),
        "small-images": NamedRecipe(
            title="Small images: the default where no weights are given",
            data="any up to 64x64",
            fields=_FAST | {"model.preset": "cifar_resnet12_wide", "epochs": 30},
            source="`fast-cifar`, with two more blocks and more epochs",
            sized=_small,
        ),
        "finetune": NamedRecipe(
            title="From weights to other images: the default where weights are given",
            data="any",
            fields={
                "epochs": 10,
                "batch_size": _BATCH,
                "optimizer.name": "sgd",
                "optimizer.lr": 0.01,
                "optimizer.momentum": 0.9,
                "optimizer.nesterov": True,
                "optimizer.weight_decay": 1e-4,
                "optimizer.head_lr": 10.0,
                "optimizer.layer_decay": 0.9,
                "schedule.name": "cosine",
                "schedule.warmup": 0.1,
                "loss.label_smoothing": 0.1,
            },
            source="optimizer of 1805.08974, rates that fall towards the input of 1801.06146; benchmarks/finetuning.py",
            differs=("1805.08974 searches rate and weight decay for each dataset, in 20,000 steps of 256 images",),
            from_weights=True,
            sized=_finetuned,
        ),
    }
)


def named_recipe(name: str) -> NamedRecipe:
    """The recipe of that name; raises `ConfigError` with the nearest ones where there is none."""
    if not isinstance(name, str) or name not in RECIPES:
        hint = nearest(str(name), RECIPES) or f"; there are {', '.join(RECIPES)}"
        raise ConfigError(f"{quoted(name)} is neither a named recipe nor a recipe file{hint}")
    return RECIPES[name]
