"""How other libraries name the parts of a residual network: the tables, and translation both ways.

A rule is a pair of module paths, ours and theirs. `{s}` stands for the stage, `{b}` for the block, `{i}` for the layer,
and `{s-1}` for one less; what stands in parentheses is written, but may be missing where it is read. What follows the
module path (`weight`, `running_mean`) is the same everywhere.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from functools import cache

from residuum.config import ResNetConfig
from residuum.errors import WeightsError, quoted

Rules = tuple[tuple[str, str], ...]

HUGGING_FACE: Rules = (
    ("conv1", "(resnet.)embedder.embedder.convolution"),
    ("bn1", "(resnet.)embedder.embedder.normalization"),
    ("layer{s}.{b}.conv{i}", "(resnet.)encoder.stages.{s-1}.layers.{b}.layer.{i-1}.convolution"),
    ("layer{s}.{b}.bn{i}", "(resnet.)encoder.stages.{s-1}.layers.{b}.layer.{i-1}.normalization"),
    ("layer{s}.{b}.downsample.0", "(resnet.)encoder.stages.{s-1}.layers.{b}.shortcut.convolution"),
    ("layer{s}.{b}.downsample.1", "(resnet.)encoder.stages.{s-1}.layers.{b}.shortcut.normalization"),
    ("fc", "classifier.1"),
)
DETECTRON2: Rules = (
    ("conv1", "stem.conv1"),
    ("bn1", "stem.conv1.norm"),
    ("layer{s}.{b}.conv{i}", "res{s+1}.{b}.conv{i}"),
    ("layer{s}.{b}.bn{i}", "res{s+1}.{b}.conv{i}.norm"),
    ("layer{s}.{b}.downsample.0", "res{s+1}.{b}.shortcut"),
    ("layer{s}.{b}.downsample.1", "res{s+1}.{b}.shortcut.norm"),
    ("fc", "linear"),
)
TIMM_V2: Rules = (
    ("conv1", "stem.conv"),
    ("conv1.0", "stem.conv1"),
    ("conv1.1", "stem.norm1"),
    ("conv1.3", "stem.conv2"),
    ("conv1.4", "stem.norm2"),
    ("conv1.6", "stem.conv3"),
    ("layer{s}.{b}.conv{i}", "stages.{s-1}.blocks.{b}.conv{i}"),
    ("layer{s}.{b}.bn{i}", "stages.{s-1}.blocks.{b}.norm{i}"),
    ("layer{s}.{b}.downsample.0", "stages.{s-1}.blocks.{b}.downsample.conv"),
    ("layer{s}.{b}.downsample.1", "stages.{s-1}.blocks.{b}.downsample.conv"),  # after an average pool
    ("norm", "norm"),
    ("fc", "head.fc"),
)
# Repositories for CIFAR, and the older ones of SENet, differ from torchvision in these alone.
CIFAR: Rules = (
    ("fc", "linear"),
    ("fc", "last_linear"),
    ("layer{s}.{b}.downsample.{i}", "layer{s}.{b}.shortcut.{i}"),
)
# The children of torchvision's networks in an `nn.Sequential`, as self-supervised repositories cut the head off.
CHILDREN: Rules = (
    ("conv1", "0"),
    ("bn1", "1"),
    ("layer{s}.{b}.conv{i}", "{s+3}.{b}.conv{i}"),
    ("layer{s}.{b}.bn{i}", "{s+3}.{b}.bn{i}"),
    ("layer{s}.{b}.downsample.{i}", "{s+3}.{b}.downsample.{i}"),
    ("fc", "9"),
)


@dataclass(frozen=True)
class Layout:
    """One way of naming: its rules, whether names outside them are ours as they are, and what configs it can say."""

    rules: Rules
    keeps_ours: bool = False
    # Fields that may differ from the default ...
    free: frozenset[str] = frozenset()
    # ... and values among these that may not be.
    barred: tuple[tuple[str, object], ...] = ()


_TRAINING = {"num_classes", "zero_init_residual", "stochastic_depth", "stochastic_depth_mode", "dropout"}
_SHAPE = _TRAINING | {"block", "depths", "output_stride"}
_ALL = {f.name for f in fields(ResNetConfig)}
_SMALL_IMAGES = (("stem", "conv3"), ("stem_pool", "none"), ("downsample", "pad"))
LAYOUTS = {
    "torchvision": Layout((), True, frozenset(_SHAPE | {"groups", "width_per_group"})),
    "timm": Layout(
        (),
        True,
        frozenset(_ALL - {"first_stride", "stride_on", "preact", "weight_standardization"}),
        (*_SMALL_IMAGES, ("stem_pool", "max0")),
    ),
    "timm-v2": Layout(
        TIMM_V2,
        False,
        frozenset(
            _SHAPE
            | {"preact", "stem", "stem_width", "stem_pool", "downsample", "norm", "weight_standardization", "width"}
            | {"widths", "in_channels"}
        ),
        (*_SMALL_IMAGES, ("stem_pool", "conv"), ("preact", False)),
    ),
    "hf": Layout(
        HUGGING_FACE,
        False,
        frozenset(_SHAPE | {"widths", "width", "stem_width", "stride_on", "first_stride", "activation", "in_channels"}),
    ),
    "detectron2": Layout(
        DETECTRON2, False, frozenset(_SHAPE | {"groups", "width_per_group", "stride_on", "stem_width", "in_channels"})
    ),
    "cifar": Layout(CIFAR, True, frozenset(_ALL)),
    "children": Layout(CHILDREN, False, frozenset(_SHAPE | {"groups", "width_per_group"})),
}
_NUMBER = "[0-9]{1,4}"
_LONGEST_NAME = 200
_OURS = re.compile(
    rf"(conv1|bn1|maxpool|norm|fc|layer{_NUMBER}\.{_NUMBER}\.(conv[0-9]|bn[0-9]|downsample|se))(\..{{1,100}})?"
)
_SLOT = re.compile(r"\{(\w)([+-]\d)?\}")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression of a template, with a named group for each slot."""
    optional, rest = re.match(r"(\([^)]*\))?(.*)", template).groups()  # type: ignore[union-attr]
    text = f"(?:{re.escape(optional[1:-1])})?" if optional else ""
    position = 0
    for slot in _SLOT.finditer(rest):
        text += re.escape(rest[position : slot.start()]) + f"(?P<{slot[1]}>{_NUMBER})"
        position = slot.end()
    return re.compile(text + re.escape(rest[position:]))


@cache
def block_patterns() -> tuple[re.Pattern[str], ...]:
    """For each way of naming the convolutions of blocks, the pattern of their weights behind any `prefix`."""
    ours = "layer{s}.{b}.conv{i}"
    templates = {dict(layout.rules).get(ours, ours) for layout in LAYOUTS.values()}
    texts = [_pattern(template).pattern for template in sorted(templates)]
    return tuple(re.compile(rf"(?P<prefix>(?:.*?\.)??){text}\.weight") for text in texts)


@cache
def _known(layout: str) -> re.Pattern[str]:
    """What fits any module path that a layout knows."""
    parts = [_SLOT_NAMES.sub("(?:", _pattern(theirs).pattern) for _, theirs in LAYOUTS[layout].rules]
    parts += [_OURS.pattern] if LAYOUTS[layout].keeps_ours else []
    return re.compile("|".join(parts))


_SLOT_NAMES = re.compile(r"\(\?P<\w>")


def _translate(path: str, source: str, target: str) -> str | None:
    """A module path that fits the template `source`, written as `target` says; None where it does not fit."""
    found = _pattern(source).fullmatch(path)
    if found is None:
        return None
    values = {slot[1]: int(found[slot[1]]) - int(slot[2] or 0) for slot in _SLOT.finditer(source)}
    if values.get("s", 1) < 1:
        return None
    return _SLOT.sub(lambda slot: str(values[slot[1]] + int(slot[2] or 0)), re.sub(r"[()]", "", target))


def to_ours(name: str, layout: Layout) -> list[str]:
    """What a tensor of a layout may be called here, likeliest first; nothing where the layout has no such tensor."""
    path, _, tensor = name.rpartition(".")
    found = [ours for rule in layout.rules if (ours := _translate(path, rule[1], rule[0])) is not None]
    if not found and layout.keeps_ours and _OURS.fullmatch(path):
        found = [path]
    return [f"{ours}.{tensor}" for ours in found]


def to_theirs(name: str, layout: Layout) -> str:
    """What a tensor of ours is called in a layout."""
    path, _, tensor = name.rpartition(".")
    found = (theirs for rule in layout.rules if (theirs := _translate(path, *rule)) is not None)
    return f"{next(found, path)}.{tensor}"


def recognise(names: Collection[str]) -> str:
    """The layout whose rules know most of these names; raises `WeightsError` where none knows half of them."""
    paths = [name.rpartition(".")[0][:_LONGEST_NAME] for name in names]
    known = {name: sum(1 for path in paths if _known(name).fullmatch(path)) for name in LAYOUTS}
    best = max(known, key=lambda name: known[name])
    if not names or 2 * known[best] < len(names):
        shown = ", ".join(map(quoted, sorted(names)[:3]))
        raise WeightsError(
            f"these are not the weights of a residual network that is known here ({shown}, ...); the known layouts are "
            f"those of {', '.join(LAYOUTS)}"
        )
    return best


def rename(names: Iterable[str], layout: Layout, known: Collection[str] | None = None) -> dict[str, str]:
    """Each name to ours. Where a rule leaves a choice, `known` decides, and else the stem: deep ones go with pools."""
    names = list(names)
    pooled = any(name.startswith("stem.conv1.") for name in names)
    renamed = {}
    for name in names:
        found = to_ours(name, layout)
        if known is not None:
            found = [ours for ours in found if ours in known] or found
        if found:
            renamed[name] = found[-1 if pooled and known is None else 0]
    return renamed


def check_layout(config: ResNetConfig, layout: str) -> None:
    """Raise `WeightsError` where a layout's library has no network of this config."""
    rules, default = LAYOUTS[layout], ResNetConfig()
    for name, value in config.to_dict().items():
        if (name not in rules.free and value != getattr(default, name)) or (name, value) in rules.barred:
            raise WeightsError(f"{layout} has no network with {name}={value!r}; convert to another layout")
