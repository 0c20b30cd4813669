"""Random weights for whole networks, and how far two tensors are apart."""

import torch
from torch import Tensor, nn

from residuum import Preprocessing, create


def scramble(model: nn.Module) -> None:
    """Give norms and running statistics values as training does, so that no term hides behind 0 or 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.0) if name.endswith("weight") else nn.init.normal_(parameter, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(torch.finfo(torch.float32).tiny)).item()


def small_to_export(preprocessing=True, **changes):
    """A bottleneck network of two blocks and five classes, scrambled, that looks at 32 x 40 pixels."""
    torch.manual_seed(0)
    small = {"depths": (1, 1), "widths": (8, 16), "stem_width": 8, "num_classes": 5} | changes
    model = create("resnet50", **small)
    scramble(model)
    model.classes = tuple("abcde")[: small["num_classes"]] or None
    if preprocessing:
        channels = model.config.in_channels
        model.preprocessing = Preprocessing(
            channels, (32, 40), (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], 0.875
        )
    return model.eval()
