"""The ten modifications of the network stacked by hand, as the edits of its source that a patient person would make.

Each is made the shortest way that we found: with parts of torchvision, where it has them, and without a loop.
"""

import re
from collections.abc import Callable
from itertools import count


def _sub(pattern: str, replacement: str | Callable[[re.Match[str]], str], source: str) -> str:
    """`re.sub` by line; an edit that finds nothing to change is a mistake."""
    edited, found = re.subn(pattern, replacement, source, flags=re.MULTILINE)
    if not found:
        raise ValueError(f"nothing in the source fits {pattern!r}")
    return edited


def _importing(line: str, source: str) -> str:
    return _sub(r"^(from torch import .*)$", rf"\1\n{line}", source)


def half_width(source: str) -> str:
    """Every number of channels in the constructor."""

    def halved(layer: re.Match[str]) -> str:
        return layer[1] + re.sub(r"\b\d{2,}\b", lambda channels: str(int(channels[0]) // 2), layer[2])

    return _sub(r"(= nn\.(?:Conv2d|BatchNorm2d|Linear)\()(.*)$", halved, source)


def resnet101(source: str) -> str:
    """Seventeen more blocks in the third stage: the last one, copied."""
    paragraphs = []
    for paragraph in source.split("\n\n"):
        paragraphs.append(paragraph)
        if "layer3_5_" in paragraph:
            paragraphs += [paragraph.replace("layer3_5_", f"layer3_{i}_") for i in range(6, 23)]
    return "\n\n".join(paragraphs)


def cifar_stem(source: str) -> str:
    """Another first convolution, and no pool."""
    source = _sub(r"^.*\bmaxpool\b.*\n", "", source)
    return _sub(r"kernel_size=7, stride=2, padding=3", "kernel_size=3, padding=1", source)


def stochastic_depth(source: str) -> str:
    """A call where each sum is, with the rate of that block."""
    index = count()

    def dropped(found: re.Match[str]) -> str:
        i = next(index)  # the first block's rate is 0
        return f'out = stochastic_depth(out, 0.1 * {i} / 15, "row", self.training) + identity' if i else found[0]

    return _importing("from torchvision.ops import stochastic_depth", _sub(r"out \+= identity", dropped, source))


def se(source: str) -> str:
    """Squeeze-and-excitation after each block's last norm."""

    def excited(found: re.Match[str]) -> str:
        channels = int(found[2])
        return f"{found[1]}nn.Sequential(nn.BatchNorm2d({channels}), SqueezeExcitation({channels}, {channels // 16}))"

    source = _sub(r"(_bn3 = )nn\.BatchNorm2d\((\d+)\)", excited, source)
    return _importing("from torchvision.ops import SqueezeExcitation", source)


def resnext(source: str) -> str:
    """Twice the channels inside each block, the 3x3 in 32 groups."""

    def doubled(found: re.Match[str]) -> str:
        return f"{found[1]}{2 * int(found[2])}"

    source = _sub(
        r"(_(?:conv1 = nn\.Conv2d\(\d+, |conv[23] = nn\.Conv2d\(|bn[12] = nn\.BatchNorm2d\())(\d+)", doubled, source
    )
    source = _sub(r"(_conv2 = nn\.Conv2d\(\d+, )(\d+)", doubled, source)
    return _sub(r"(_conv2 = .*padding=1, )", r"\1groups=32, ", source)


def d_shortcut(source: str) -> str:
    """An average pool before the shortcuts that stride, and no stride in them."""
    source = _sub(r"(_downsample_conv = .*)stride=2, ", r"\1", source)
    source = _sub(r"(layer[234]_0_downsample_conv\()x\)", r"\1self.halve(x))", source)
    return _sub(
        r"^(.*self\.maxpool = .*)$",
        r"\1\n        self.halve = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)",
        source,
    )


def four_channels(source: str) -> str:
    """Another first convolution."""
    return _sub(r"nn\.Conv2d\(3, ", "nn.Conv2d(4, ", source)


def checkpointing(source: str) -> str:
    """Each block's lines become a method, and the forward pass a list of calls."""
    constructor, forward = source.split("    def forward(")
    stem, *blocks, head = ("    def forward(" + forward).rstrip("\n").split("\n\n")
    calls, methods = [], []
    for block in blocks:
        name = re.search(r"layer\d_\d", block)
        assert name is not None
        calls.append(f"        x = checkpoint(self.{name[0]}, x, use_reentrant=False)")
        methods.append(f"    def {name[0]}(self, x: Tensor) -> Tensor:\n{block}\n        return x")
    whole = [constructor.rstrip("\n"), stem, "\n".join([*calls, head]), *methods]
    return _importing("from torch.utils.checkpoint import checkpoint", "\n\n".join(whole) + "\n")


def preactivation(source: str) -> str:
    """Norm and activation before each convolution, none after the stem, one of each before the head."""
    source = _sub(r"^.*(self\.bn1\b|self\.relu\(x\)|_downsample_bn).*\n", "", source)
    source = _sub(r"(conv1 = nn\.Conv2d\((\d+), .*\n.*_bn1 = nn\.BatchNorm2d\()\d+", r"\1\2", source)
    source = _sub(r"(conv3 = nn\.Conv2d\((\d+), .*\n.*_bn3 = nn\.BatchNorm2d\()\d+", r"\1\2", source)
    source = _sub(r"^( *)(self\.avgpool = .*)$", r"\1self.norm = nn.BatchNorm2d(2048)\n\1\2", source)
    source = _sub(r"^( *)(x = self\.avgpool.*)$", r"\1x = self.norm(x)\n\1x = self.relu(x)\n\1\2", source)
    return _sub(r"^ *identity = x\n(?: +.*\n)+?.*relu3\(out\)$", _preactivated, source)


def _preactivated(block: re.Match[str]) -> str:
    name = re.findall(r"layer\d_\d", block[0])[0]
    reshapes = "downsample" in block[0]
    lines = [] if reshapes else ["identity = x"]
    for i, x in ((1, "x"), (2, "out"), (3, "out")):
        lines += [f"out = self.{name}_bn{i}({x})", f"out = self.{name}_relu{i}(out)"]
        if i == 1 and reshapes:
            lines.append(f"identity = self.{name}_downsample_conv(out)")
        lines.append(f"out = self.{name}_conv{i}(out)")
    return "\n".join(" " * 8 + line for line in [*lines, "x = out + identity"])


EDITS: dict[str, Callable[[str], str]] = {
    "half_width": half_width,
    "resnet101": resnet101,
    "cifar_stem": cifar_stem,
    "stochastic_depth": stochastic_depth,
    "se": se,
    "resnext": resnext,
    "d_shortcut": d_shortcut,
    "four_channels": four_channels,
    "checkpointing": checkpointing,
    "preactivation": preactivation,
}
