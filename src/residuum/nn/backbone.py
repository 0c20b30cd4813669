"""Networks as backbones of torchvision's detectors and segmenters, and freezing their early stages and norms."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from residuum.errors import ConfigError
from residuum.nn.resnet import ResNet


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm that stays as in evaluation, whatever mode its network is in: fixed statistics, scale and shift."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)


def freeze(model: ResNet, stages: int = 2, *, norms: bool = True) -> ResNet:
    """Stop the training of the stem and the first stages, and of every batch norm unless `norms` is False; in place.

    0 stages leave stem and stages as they are. Names in the state dict stay, and so do the network's outputs in
    evaluation. Raises `ConfigError` for more stages than there are.
    """
    if not 0 <= stages <= len(model.stages):
        raise ConfigError(f"stages is {stages}; this network has {len(model.stages)}, so it must be 0 to that")
    early: list[nn.Module] = [model.conv1, model.bn1, model.maxpool, *model.stages[:stages]] if stages else []
    for part in early:
        part.requires_grad_(False)
    frozen = [model] if norms else early
    names = {id(m) for part in frozen for m in part.modules() if isinstance(m, nn.BatchNorm2d)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in names and isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _frozen(child))
    return model


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm:
    """A frozen norm that shares the tensors of `norm`."""
    frozen = FrozenBatchNorm(norm.num_features, norm.eps, norm.momentum, device="meta")
    frozen.weight, frozen.bias = norm.weight, norm.bias
    frozen.running_mean, frozen.running_var = norm.running_mean, norm.running_var
    frozen.num_batches_tracked = norm.num_batches_tracked
    return frozen.requires_grad_(False).eval()


class Pyramid(nn.Module):
    """A feature pyramid (1612.03144) on a network's stages, as `torchvision.models.detection` takes a backbone.

    (N, C, H, W) -> a dict of maps of `out_channels` at the strides of `stages`, and `pool`, half the last. `stages` are
    counted from 1; all are taken where it is left out.
    """

    def __init__(self, model: ResNet, out_channels: int = 256, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.body, self.out_channels = model, out_channels
        self.taken = _checked(model, stages)
        channels = [model.feature_info[i].channels for i in self.taken]
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body.features(x)
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(n), features[i]) for n, i in enumerate(self.taken)))
        return maps


class Segmentation(nn.Module):
    """A network as `torchvision.models.segmentation` takes a backbone: {"out": last stage, "aux": the one before}.

    `channels` and `aux_channels` are what the heads have to take. Build the network with `output_stride=8` or 16.
    """

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        if len(model.stages) < 2:
            raise ConfigError("a segmentation backbone needs at least 2 stages: the last but one is for the side head")
        self.body = model
        self.aux_channels, self.channels = (info.channels for info in model.feature_info[-2:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        *_, aux, out = self.body.features(x)
        return OrderedDict(out=out, aux=aux)


def _checked(model: ResNet, stages: Sequence[int] | None) -> list[int]:
    count = len(model.stages)
    stages = list(stages) if stages is not None else list(range(1, count + 1))
    if not stages or stages != sorted(set(stages)) or not 1 <= stages[0] <= stages[-1] <= count:
        raise ConfigError(f"stages is {stages}; it must be rising numbers from 1 to {count}, at least one")
    return [stage - 1 for stage in stages]
