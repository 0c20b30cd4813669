"""A network as a `torch.export` program, which torch runs without this package and other compilers take."""

import json
import warnings
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from residuum.errors import ConfigError, ExportError, first_line, quoted
from residuum.export.proof import prove
from residuum.files import write_whole
from residuum.inference.optimize import FoldedResNet, folded_network
from residuum.inference.surgery import copied, own_hooks
from residuum.nn.resnet import ResNet

ENDING = ".pt2"
NOTE = "residuum.json"  # what the file says beside the program


def export(
    model: ResNet,
    path: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    precision: str = "fp32",
) -> ExportedProgram:
    """The network as a program: float (N, in_channels, H, W) -> float32 (N, num_classes), in evaluation, any N.

    `image_size` is the height and width of the images that it will take; left out, it is that of the network's
    `preprocessing`. `precision` is fp32, bf16, fp16, or auto as in
    `optimize_for_inference`, which folds the network first. `path` ends in .pt2: the program is written there, with the
    network's config in the extra file `residuum.json`; `torch.export.load` reads it.

    The program, as it was written, is compared with the network on made-up images, in batches of several sizes, before
    it is given out. Raises `ExportError` where its answers differ by more than `optimize_for_inference` allows or torch
    cannot capture the network, `ConfigError` for an image size, an ending or a network that cannot be.
    """
    preprocessing = getattr(model, "preprocessing", None)
    if image_size is None and preprocessing is not None:
        image_size = preprocessing.image_size
    if (
        image_size is None
        or len(image_size) != 2
        or not all(isinstance(side, int) and side >= 1 for side in image_size)
    ):
        raise ConfigError(f"image_size is {quoted(image_size)}; it must be height and width, such as (224, 224)")
    if path is not None and Path(path).suffix != ENDING:
        raise ConfigError(f"{quoted(str(path))} does not end in {ENDING}; name the file so")
    with torch.inference_mode(False), torch.no_grad():
        network = copied(model)
        hooks = own_hooks(network)
        if hooks:
            raise ConfigError(
                f"{hooks[0]} has a forward hook, and a program calls none; remove it, or make it a layer of the network"
            )
        net = folded_network(network, precision, plain=True)
        channels = net.in_channels or net.config.in_channels
        network.float()
        program = _captured(net, channels, image_size)
        batches = _images(channels, image_size, net)
        if path is None:
            prove(program.module(), network, batches, net.precision)
            return program
        note = {
            "config": net.config.to_dict(),
            "precision": net.precision,
            "image_size": list(image_size),
            "classes": model.classes,
            "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        }

        def write(partial: Path) -> None:
            with warnings.catch_warnings(action="ignore"):  # of views among weights, which are whole in the file
                torch.export.save(program, partial, extra_files={NOTE: json.dumps(note)})
            prove(torch.export.load(partial).module(), network, batches, net.precision)

        write_whole(Path(path), write, ExportError)
        return program


def _captured(net: FoldedResNet, channels: int, size: tuple[int, int]) -> ExportedProgram:
    # A batch of 1 would become fixed.
    images = torch.zeros(2, channels, *size, device=net.device, dtype=torch.float32)
    try:
        return torch.export.export(net, (images,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch's own, of many kinds
        raise ExportError(f"torch cannot export the network: {first_line(error)}") from error


def _images(channels: int, size: tuple[int, int], net: FoldedResNet) -> list[torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = ((count, channels, *size) for count in (1, 3))
    made = (torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) for shape in shapes)
    return [images.to(net.device) for images in made]
