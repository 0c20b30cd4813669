"""Published networks by name: torchvision's and timm's names, the CIFAR nets of the papers, pre-activation nets.

Two of timm's `resnet` module are left out: in `ecaresnet50d_pruned` and `ecaresnet101d_pruned` each block has channel
numbers of its own, which no field says.
"""

import csv
import fnmatch
import functools
import os
from pathlib import Path
from typing import Any

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, nearest, quoted

Fields = dict[str, Any]

COSTS = Path(__file__).with_name("presets.csv")

_BASIC: Fields = {"block": "basic"}
_D: Fields = {"stem": "deep", "downsample": "avg"}  # 1812.01187, table 5
_T: Fields = {"stem": "tiered", "downsample": "avg"}
_SE: Fields = {"attention": "se"}
_ECA: Fields = {"attention": "eca"}
_AVG: Fields = {"antialias": "avg"}
_BLUR: Fields = {"antialias": "blur"}
_RS: Fields = _D | _SE | {"attention_ratio": 0.25, "stem_pool": "conv"}  # 2103.07579
_PREACT: Fields = {"preact": True}  # 1603.05027
_BIT: Fields = {"norm": "group", "weight_standardization": True, "stem_pool": "max0"}  # 1912.11370
_CIFAR: Fields = {  # 1512.03385, section 4.2
    "block": "basic", "widths": (16, 32, 64), "stem": "conv3", "stem_width": 16, "stem_pool": "none",
    "downsample": "pad", "num_classes": 10,
}  # fmt: skip
_DEPTHS: dict[int, tuple[int, ...]] = {
    10: (1, 1, 1, 1), 14: (1, 1, 1, 1), 18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3),
    101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 201: (3, 24, 36, 4), 269: (3, 30, 48, 8),
}  # fmt: skip
_RS_DEPTHS: dict[int, tuple[int, ...]] = {
    50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 270: (4, 29, 53, 4),
    350: (4, 36, 72, 4), 420: (4, 44, 87, 4),
}  # fmt: skip


def _resnext(cardinality: int, width: int) -> Fields:
    return {"groups": cardinality, "width_per_group": width}


def _build() -> dict[str, ResNetConfig]:
    nets: dict[str, ResNetConfig] = {}

    def add(name: str, depth: int, *parts: Fields) -> None:
        fields: Fields = {"depths": _DEPTHS[depth]}
        for part in parts:
            fields |= part
        nets[name] = ResNetConfig(**fields)

    for depth in (10, 18, 34):
        if depth > 10:
            add(f"resnet{depth}", depth, _BASIC)
            add(f"resnet{depth}d", depth, _BASIC, _D)
            add(f"seresnet{depth}", depth, _BASIC, _SE)
        else:
            add("resnet10t", 10, _BASIC, _T)
    add("resnet14t", 14, _T)
    for depth in (26, 50, 101, 152, 200):
        add(f"resnet{depth}", depth)
        add(f"resnet{depth}d", depth, _D)
    for depth in (26, 50):
        add(f"resnet{depth}t", depth, _T)
    for depth in (50, 101, 152):
        add(f"resnet{depth}c", depth, {"stem": "deep"})
        add(f"resnet{depth}s", depth, {"stem": "deep", "stem_width": 128})
        add(f"seresnet{depth}", depth, _SE)
    add("resnet50_gn", 50, {"norm": "group"})

    for depth, cardinality, width in (
        (50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 32, 16), (101, 32, 32), (101, 64, 4)
    ):  # fmt: skip
        add(f"resnext{depth}_{cardinality}x{width}d", depth, _resnext(cardinality, width))
        if width < 16:
            add(f"seresnext{depth}_{cardinality}x{width}d", depth, _resnext(cardinality, width), _SE)
    add("resnext50d_32x4d", 50, _resnext(32, 4), _D)
    add("seresnext26d_32x4d", 26, _resnext(32, 4), _D, _SE)
    add("seresnext26t_32x4d", 26, _resnext(32, 4), _T, _SE)
    add("seresnext101d_32x8d", 101, _resnext(32, 8), _D, _SE)
    for depth in (50, 101):
        add(f"wide_resnet{depth}_2", depth, {"width_per_group": 128})

    add("seresnet50t", 50, _T, _SE)
    for depth in (152, 200, 269):
        add(f"seresnet{depth}d", depth, _D, _SE)
    for depth in (50, 101, 200, 269):
        add(f"ecaresnet{depth}d", depth, _D, _ECA)
    for depth in (26, 50):
        add(f"ecaresnet{depth}t", depth, _T, _ECA)
        add(f"ecaresnext{depth}t_32x4d", depth, _resnext(32, 4), _T, _ECA)
    add("ecaresnetlight", 50, _ECA, {"depths": (1, 1, 11, 3), "downsample": "avg"})

    add("resnetblur18", 18, _BASIC, _BLUR)
    add("resnetblur50", 50, _BLUR)
    add("resnetaa50", 50, _AVG)
    add("resnetaa34d", 34, _BASIC, _D, _AVG)
    for depth in (50, 101):
        add(f"resnetblur{depth}d", depth, _D, _BLUR)
        add(f"resnetaa{depth}d", depth, _D, _AVG)
    add("seresnetaa50d", 50, _D, _SE, _AVG)
    add("seresnextaa101d_32x8d", 101, _resnext(32, 8), _D, _SE, _AVG)
    add("seresnextaa201d_32x8d", 201, _resnext(32, 8), _D, _SE, _AVG, {"stem_width": 128})
    add("senet154", 152, _resnext(64, 4), _SE, {
        "stem": "deep", "stem_width": 128, "downsample_kernel": 3, "reduce_first": 2
    })  # fmt: skip
    add("test_resnet", 10, {
        "block": ("basic", "basic", "bottleneck", "basic"), "widths": (32, 48, 48, 96), "stem": "deep",
        "stem_width": 32, "downsample": "avg",
    })  # fmt: skip
    for depth, depths in _RS_DEPTHS.items():
        add(f"resnetrs{depth}", 50, _RS, {"depths": depths})

    for depth in (20, 32, 44, 56, 110):
        add(f"cifar_resnet{depth}", 10, _CIFAR, {"depths": ((depth - 2) // 6,) * 3})
    for depth in (50, 101, 152):
        add(f"preresnet{depth}", depth, _PREACT)
    # timm's resnetv2
    for depth, kind in ((18, _BASIC), (34, _BASIC), (50, {}), (101, {}), (152, {})):
        add(f"resnetv2_{depth}", depth, kind, _PREACT)
        add(f"resnetv2_{depth}d", depth, kind, _PREACT, _D)
    add("resnetv2_50t", 50, _PREACT, _T)
    add("resnetv2_50d_gn", 50, _PREACT, _D, {"norm": "group"})
    for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4)):
        add(f"resnetv2_{depth}x{factor}_bit", depth, _PREACT, _BIT, {"width": float(factor)})

    for depth in (20, 56, 110):
        add(f"cifar_preresnet{depth}", 10, _CIFAR, _PREACT, {"depths": ((depth - 2) // 6,) * 3})
    # Ours, for short runs: a few wide blocks on maps of 16x16, 8x8 and 4x4, whose shortcuts have weights (ResNet-D).
    for depth, depths in ((8, (1, 1, 1)), (12, (1, 2, 2))):
        add(f"cifar_resnet{depth}_wide", 10, _CIFAR, {
            "depths": depths, "widths": (48, 96, 192), "first_stride": 2, "downsample": "avg",
            "zero_init_residual": False,
        })  # fmt: skip
    # 8x8 grey digits: no stride in the stem, two stages.
    add("digits_resnet", 10, _CIFAR, {"depths": (2, 2), "widths": (32, 64), "stem_width": 32, "in_channels": 1})
    return nets


# the config of each published network, by its name
PRESETS = _build()


def list_presets(pattern: str = "*") -> list[str]:
    """The names of the presets that a pattern fits, in order: `list_presets("*resnext*")`. None may fit."""
    return fnmatch.filter(PRESETS, pattern)


def usual_image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels of the images that a preset is meant for; `ConfigError` where there is none."""
    preset(name)
    side = 8 if name == "digits_resnet" else 32 if name.startswith("cifar_") else 224
    return side, side


@functools.cache
def preset_costs() -> dict[str, tuple[int, int]]:
    """Of each preset its parameters and the MAC of one image of its usual size, without torch.

    From a table that `python -m scripts.reference` makes of what `residuum.cost` finds, and a test compares with it.
    """
    with COSTS.open(encoding="utf-8", newline="") as file:
        return {row["preset"]: (int(row["parameters"]), int(row["macs"])) for row in csv.DictReader(file)}


def preset(name: str) -> ResNetConfig:
    """The config of a published network; raises `ConfigError` with the nearest names for one that is not known."""
    if name in PRESETS:
        return PRESETS[name]
    if os.path.exists(name):  # noqa: PTH110 (any text may be asked for)
        raise ConfigError(f"{quoted(name)} is no preset; 'residuum inspect' shows the network of weights and runs")
    raise ConfigError(f"there is no preset {name!r}{nearest(name, PRESETS)} ('residuum presets' lists all)")
