"""A network as a program that gives the output of each block too, so that a converted network can be looked into."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from residuum.errors import ConfigError
from residuum.inference.folding import FoldedBlock
from residuum.inference.optimize import FoldedResNet, folded_network
from residuum.inference.surgery import own_hooks
from residuum.nn.resnet import ResNet
from residuum.runtimes.program import captured as program_of

HEAD = "head"  # the part whose output are the logits


class Tapped(nn.Module):
    """A network that gives its logits and, behind them, the output of each block in the order of `names`.

    `names` are the stem, the blocks as the network calls them (`layer2.0`) and the head, whose output, the logits,
    comes first. The network is the folded one, in float32.
    """

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        net = folded_network(model, "fp32", plain=True)
        self.net, self.names = net, [name for name, _ in _parts(net)] + [HEAD]

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images.contiguous(memory_format=torch.channels_last)
        outputs = []
        for _, run in _parts(self.net):
            # The next block may write over what it is given.
            x = run(x.clone())
            outputs.append(x)
        return self.net.head(x.clone()), *outputs


def _parts(net: FoldedResNet) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield "stem", nn.Sequential(net.stem, net.pool)
    for number, stage in enumerate(net.stages, 1):
        blocks = list(stage) if isinstance(stage, nn.Sequential) else []
        if blocks and all(isinstance(block, FoldedBlock) for block in blocks):
            yield from ((f"layer{number}.{i}", block) for i, block in enumerate(blocks))
        else:  # what a user put there is one block
            yield f"layer{number}", stage


def captured(model: ResNet, size: tuple[int, int]) -> tuple[ExportedProgram, Tapped]:
    """The program of a network with the outputs of its blocks: float (N, C, height, width) of `size`, any N.

    Raises `ConfigError` for a network on which hooks run or that is not on the CPU, `ExportError` where torch cannot
    capture it.
    """
    hooks = own_hooks(model)
    if hooks:
        raise ConfigError(f"{hooks[0]} has a forward hook, and an exported network calls none; remove it")
    tapped = Tapped(model)
    if tapped.net.device.type != "cpu":
        raise ConfigError(f"the network is on {tapped.net.device}; move it to the CPU to quantize it")
    channels = tapped.net.in_channels or model.config.in_channels
    images = torch.zeros(2, channels, *size)  # a batch of 1 would become fixed
    return program_of(tapped, images, (0,)), tapped
