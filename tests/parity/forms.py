"""The peers: every network of another library that ours is compared with, and one written for the purpose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residuum import PRESETS, ResNetConfig, preset


class Norm(nn.Module):
    """detectron2's frozen batch norm: four buffers and no counter.

    Where a gradient is wanted that library works out scale and shift by itself (`explicit`), elsewhere it calls torch's
    batch norm. The two round differently, which turns a ReLU here and there and so moves single gradients by more than
    rounding: networks are compared in the second, and logits in both.
    """

    def __init__(self, channels: int, explicit: bool) -> None:
        super().__init__()
        self.explicit = explicit
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.explicit:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)
        scale = self.weight * torch.rsqrt(self.running_var + 1e-5)
        return x * scale[None, :, None, None] + (self.bias - self.running_mean * scale)[None, :, None, None]


class Conv(nn.Conv2d):
    """A convolution that owns the norm after it, as detectron2's does."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1, *, explicit: bool) -> None:
        super().__init__(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = Norm(out, explicit)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class DetectronBlock(nn.Module):
    def __init__(
        self, inp: int, inner: int, out: int, stride: int, groups: int, caffe: bool, *, explicit: bool
    ) -> None:
        super().__init__()
        self.shortcut = Conv(inp, out, 1, stride, explicit=explicit) if inp != out else None
        self.conv1 = Conv(inp, inner, 1, stride if caffe else 1, explicit=explicit)
        self.conv2 = Conv(inner, inner, 3, 1 if caffe else stride, groups, explicit=explicit)
        self.conv3 = Conv(inner, out, 1, explicit=explicit)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Detectron(nn.Module):
    """A bottleneck network in detectron2's form: the names of its checkpoints, FrozenBatchNorm, a linear head.

    The library cannot be installed from a registry, so this is written from its documented form.
    """

    def __init__(
        self, depths: tuple[int, ...], groups: int = 1, inner: int = 64, caffe: bool = True, explicit: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = Conv(3, 64, 7, 2, explicit=explicit)
        inp, out = 64, 256
        for number, depth in enumerate(depths, 2):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and number > 2 else 1
                blocks.append(DetectronBlock(inp, inner, out, stride, groups, caffe, explicit=explicit))
                inp = out
            self.add_module(f"res{number}", nn.Sequential(*blocks))
            inner, out = 2 * inner, 2 * out
        self.linear = nn.Linear(inp, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem.conv1(x)), 3, 2, 1)
        for name, stage in self.named_children():
            if name.startswith("res"):
                x = stage(x)
        return self.linear(x.mean((2, 3)))


@dataclass(frozen=True)
class Form:
    """A peer: how it is built, the config of ours, and the layout that ours writes for it."""

    name: str
    build: Callable[[], nn.Module]
    config: ResNetConfig
    layout: str
    even: bool = False  # whether the peer fails where a size is odd

    def __str__(self) -> str:
        return self.name


def timm_forms() -> Iterator[Form]:
    import timm

    names = [n for m in ("resnet", "resnetv2") for n in timm.list_models(module=m) if n in PRESETS]
    for name in names:
        config = preset(name).replace(num_classes=10)
        yield Form(
            f"timm:{name}",
            lambda name=name: timm.create_model(name, num_classes=10),
            config,
            "timm",
            config.antialias == "avg",
        )


def torchvision_forms() -> Iterator[Form]:
    import torchvision

    for name in torchvision.models.list_models():
        if name in PRESETS and "resne" in name:
            yield Form(
                f"torchvision:{name}",
                lambda name=name: torchvision.models.get_model(name, num_classes=10),
                preset(name).replace(num_classes=10),
                "torchvision",
            )


def hugging_face_forms() -> Iterator[Form]:
    from transformers import ResNetConfig as PeerConfig
    from transformers import ResNetForImageClassification

    for block, widths in (("basic", [16, 32, 64]), ("bottleneck", [64, 128, 256])):
        for first in (False, True):
            for inside in (False, True) if block == "bottleneck" else (False,):
                theirs = PeerConfig(
                    depths=[2, 1, 3], hidden_sizes=widths, embedding_size=16, layer_type=block, num_labels=10,
                    downsample_in_first_stage=first, downsample_in_bottleneck=inside,
                )  # fmt: skip
                ours = ResNetConfig(
                    block=block, depths=(2, 1, 3), widths=(16, 32, 64), stem_width=16, num_classes=10,
                    first_stride=2 if first else 1, output_stride=64, stride_on="1x1" if inside else "3x3",
                )  # fmt: skip
                name = f"hf:{block}{'-first' * first}{'-inside' * inside}"
                yield Form(name, lambda theirs=theirs: ResNetForImageClassification(theirs), ours, "hf")


def detectron2_forms() -> Iterator[Form]:
    for name, depths, fields, inner in (
        ("r50", (3, 4, 6, 3), {"stride_on": "1x1"}, 64),
        ("r101", (3, 4, 23, 3), {"stride_on": "1x1"}, 64),
        ("r50-v1.5", (3, 4, 6, 3), {}, 64),
        ("x101-32x8d", (3, 4, 23, 3), {"groups": 32, "width_per_group": 8}, 256),
    ):
        config = ResNetConfig(depths=depths, num_classes=10, **fields)
        yield Form(
            f"detectron2:{name}",
            lambda depths=depths, config=config, inner=inner: Detectron(
                depths, config.groups, inner, config.stride_on == "1x1"
            ),
            config,
            "detectron2",
        )


def all_forms() -> Iterator[Form]:
    for forms in (torchvision_forms, timm_forms, hugging_face_forms, detectron2_forms):
        yield from forms()


def compare(form: Form, size: tuple[int, int]) -> tuple[float, float]:
    """The relative difference of logits and of input gradients, evaluation, random weights brought by load_weights."""
    from residuum import ResNet, load_weights
    from tests.networks import relative, scramble

    torch.manual_seed(0)
    peer = form.build().eval()
    scramble(peer)
    ours = ResNet(form.config).eval()
    load_weights(ours, peer.state_dict())
    x = torch.randn(2, 3, *size)
    found = []
    for model in (ours, peer):
        images = x.clone().requires_grad_()
        out = model(images)
        out = out.logits if hasattr(out, "logits") else out
        out.square().sum().backward()
        found.append((out.detach(), images.grad))
        model.zero_grad(set_to_none=True)
    return relative(found[0][0], found[1][0]), relative(found[0][1], found[1][1])
