"""A config from weights alone, and the presets that it is nearest to."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from residuum.config import EXPANSION, ResNetConfig
from residuum.errors import ConfigError, WeightsError
from residuum.presets import PRESETS
from residuum.weights.layouts import LAYOUTS, recognise, rename
from residuum.weights.published import UNSEEN

_RATIOS = (1 / 16, 1 / 4, 1 / 8, 1 / 2, 1 / 32, 1.0)


def infer_config(state: Mapping[str, Tensor]) -> ResNetConfig:
    """The config of a network from its weights, in any layout that is known.

    Blocks, depths, channels, groups, stem, shortcuts, norm, attention and classes are read off names and shapes. What
    has no parameters takes its usual value: `UNSEEN` names it. Raises `WeightsError` for other weights.
    """
    layout = recognise(state)
    ours = {new: tuple(state[old].shape) for old, new in rename(state, LAYOUTS[layout]).items()}
    try:
        return _read(ours)
    except KeyError as error:
        raise WeightsError(f"these weights have no {error.args[0]}: part of a network is missing") from None
    except ConfigError as error:
        raise WeightsError(f"no config fits these weights: {error}") from None
    except (IndexError, ValueError, ZeroDivisionError):
        raise WeightsError("these weights are of shapes that no network has") from None


def _read(shapes: dict[str, tuple[int, ...]]) -> ResNetConfig:
    blocks = {(int(m[1]), int(m[2])) for name in shapes if (m := re.match(r"layer([0-9]+)\.([0-9]+)\.", name))}
    stages = sorted({stage for stage, _ in blocks})
    if not stages:
        raise KeyError("layer1.0.conv1.weight")
    count = Counter(stage for stage, _ in blocks)
    depths = tuple(count[number] for number in stages)
    kinds = tuple("bottleneck" if f"layer{s}.0.conv3.weight" in shapes else "basic" for s in stages)
    last = {"bottleneck": 3, "basic": 2}
    outs = [shapes[f"layer{s}.0.conv{last[kind]}.weight"][0] for s, kind in zip(stages, kinds, strict=True)]
    widths = tuple(out // EXPANSION[kind] for out, kind in zip(outs, kinds, strict=True))
    fields: dict[str, Any] = {"depths": depths, "block": kinds, "widths": widths}

    first = shapes["layer1.0.conv1.weight"][0]
    inner, per_group = shapes["layer1.0.conv2.weight"][:2]
    fields["reduce_first"] = inner // first
    if "basic" not in kinds:
        groups = first // per_group
        fields |= {"groups": groups, "width_per_group": -(-inner * 64 // (groups * widths[0]))}

    fields |= _stem(shapes) | _shortcut(shapes, stages)
    preact = "norm.weight" in shapes
    norm = "batch" if any(name.endswith("running_mean") for name in shapes) else "group"
    fields |= {"preact": preact, "norm": norm, "num_classes": shapes.get("fc.weight", (0,))[0]}
    if preact and norm == "group" and fields["stem"] == "conv7":  # so is BiT, and nothing else that was published
        fields |= {"weight_standardization": True, "stem_pool": "max0"}
    if "layer1.0.se.conv.weight" in shapes:
        fields["attention"] = "eca"
    elif "layer1.0.se.fc1.weight" in shapes:
        fields |= {"attention": "se", "attention_ratio": _ratio(shapes, stages)}
    return ResNetConfig.from_dict(fields)


def _stem(shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    if "conv1.weight" in shapes:
        width, channels, kernel, _ = shapes["conv1.weight"]
        stem = "conv7" if kernel == 7 else "conv3"
    else:
        first, channels = shapes["conv1.0.weight"][:2]
        width, second = shapes["conv1.6.weight"][:2]
        stem = "deep" if first == second else "tiered"
    pool = "conv" if "maxpool.0.weight" in shapes else "none" if stem == "conv3" else "max"
    return {"stem": stem, "stem_width": width, "in_channels": channels, "stem_pool": pool}


def _shortcut(shapes: dict[str, tuple[int, ...]], stages: list[int]) -> dict[str, object]:
    for name, kind in (("0", "conv"), ("1", "avg")):
        convs = [shapes.get(f"layer{s}.0.downsample.{name}.weight", ()) for s in stages]
        kernels = [shape[2] for shape in convs if len(shape) == 4]
        if kernels:
            return {"downsample": kind, "downsample_kernel": max(kernels)}
    return {"downsample": "pad" if len(stages) > 1 else "conv"}


def _ratio(shapes: dict[str, tuple[int, ...]], stages: list[int]) -> float:
    pairs = [shapes[f"layer{s}.0.se.fc1.weight"][:2] for s in stages]
    for ratio in _RATIOS:
        if all(reduced == max(8, int(channels * ratio + 4) // 8 * 8) for reduced, channels in pairs):
            return ratio
    # Rounding leaves each stage a range of ratios; any that all of them allow builds the same network.
    low = max((reduced - 4) / channels if reduced > 8 else 0.0 for reduced, channels in pairs)
    high = min((reduced + 4) / channels for reduced, channels in pairs)
    return min((low + high) / 2, 1.0)


def fitting_presets(config: ResNetConfig) -> tuple[list[str], list[str]]:
    """The presets that weights of this config may be of; where none, the nearest and the fields in which it differs.

    The number of classes and of image channels does not count, nor does what weights do not tell.
    """
    seen = [name for name in config.to_dict() if name not in UNSEEN | {"num_classes", "in_channels"}]
    plain = {name: _as_seen(preset) for name, preset in PRESETS.items()}
    differ = {
        name: [field for field in seen if getattr(preset, field) != getattr(config, field)]
        for name, preset in plain.items()
    }
    least = min(len(fields) for fields in differ.values())
    if least == 0:
        return [name for name, fields in differ.items() if not fields], []
    close = [name for name, fields in differ.items() if len(fields) == least]
    wanted = sum(config.depths)
    best = min(close, key=lambda name: abs(sum(PRESETS[name].depths) - wanted))
    return [best], differ[best]


def _as_seen(config: ResNetConfig) -> ResNetConfig:
    """A config as its weights tell it: the width factor worked into the widths."""
    if config.width == 1:
        return config
    widths = tuple(config.scaled(width) for width in config.widths)
    return config.replace(width=1.0, widths=widths, stem_width=config.stem_channels[-1])
