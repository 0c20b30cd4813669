"""Which parts of an image speak for a class: Grad-CAM, integrated gradients and occlusion, as maps.

Methods whose maps stay the same when weights are drawn anew, such as guided backpropagation, are left out (1810.03292).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from residuum.errors import ConfigError, DataError, nearest, quoted
from residuum.extras import need
from residuum.inference.surgery import copied, hooked
from residuum.nn.resnet import ResNet

Method = Literal["gradcam", "ig", "occlusion"]
Classes = int | Sequence[str | int]
TOP = 3  # classes of an image that are explained where none is named
STEPS = 64  # of the path from the mean colour to the image, for integrated gradients
CELLS = 13  # positions of the occluding square along the shorter side, each half a square from the next
TOGETHER = 16  # images that go through the network together


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of N images for K classes each; positive values speak for the class, negative ones against it.

    `maps` is float32 (N, K, h, w), in units of the class's logit, at the resolution that the method has: that of the
    stage for Grad-CAM, of the image for integrated gradients, a value for each position of the square for occlusion.
    `classes` is int64 (N, K), `probabilities` float32 (N, K).
    """

    # float32 (N, K, h, w), in units of the class's logit
    maps: Tensor
    # int64 (N, K): numbers of the classes
    classes: Tensor
    # float32 (N, K)
    probabilities: Tensor
    # gradcam, ig or occlusion
    method: Method
    stage: int | None  # of Grad-CAM, counted from 1


def explain(
    model: ResNet,
    images: Tensor,
    *,
    method: Method = "gradcam",
    classes: Classes = TOP,
    stage: int | None = None,
    steps: int = STEPS,
) -> Explanation:
    """Which parts of images, float (N, C, H, W) as the network takes them, speak for a class, and which against it.

    `classes` is how many of each image's likeliest are explained, or names or numbers of classes. `method` is one of

    - gradcam (1610.02391): the feature map of `stage`, the last one where left out, weighted by the mean gradient of
      the class's logit at it, below zero cut off. Of a network that ends in a mean and a linear classifier, each cell
      of the last stage's map is what that cell adds to the logit.
    - ig (1703.01365): gradients along the straight line from the mean colour to the image, in `steps` steps; they add
      up to the difference of the two logits. It needs captum.
    - occlusion (1311.2901): how far the logit falls where a grey square covers the image.

    The network is taken as in evaluation and in float32, from a copy: its mode, gradients, hooks and type stay. Raises
    `ConfigError` for a method, class or stage that is not there and for a network without classes or that is not ours,
    `DataError` for images of another shape, and `MissingExtraError`.
    """
    check_method(method, stage, model)
    with torch.inference_mode(False), torch.no_grad():
        network = ready(model)
    return explained(network, images, method=method, classes=classes, stage=stage, steps=steps)


def check_method(method: str, stage: int | None, model: ResNet) -> None:
    """Raise `ConfigError` for a method or a stage that is not there, `MissingExtraError` for one that cannot run."""
    methods = get_args(Method)
    if method not in methods:
        why = ""
        if "guided" in str(method) or "backprop" in str(method):
            why = "; the maps of guided backpropagation are the same whatever the weights are (1810.03292)"
        raise ConfigError(
            f"method is {quoted(method)}; it must be one of {', '.join(methods)}{why or nearest(str(method), methods)}"
        )
    if stage is not None and method != "gradcam":
        raise ConfigError(f"stage is for gradcam, and the method is {method}; leave it out")
    most = len(getattr(getattr(model, "config", None), "depths", ()))
    if stage is not None and most and not (type(stage) is int and 1 <= stage <= most):
        raise ConfigError(f"stage is {quoted(stage)}; this network has {most}, so it must be 1 to {most}")
    if method == "ig":
        need("captum.attr", extra="explain")


def ready(model: ResNet) -> ResNet:
    """A copy of a network that explains: in evaluation, in float32, no parameter with a gradient."""
    network = copied(model)
    if hooked(network):
        raise ConfigError("the network has a forward hook, which its feature maps do not pass; put it on a layer")
    if not network.config.num_classes:
        raise ConfigError("the network has no classes, so there is nothing to explain; give one with a classifier")
    return network.float()


def explained(
    network: ResNet, images: Tensor, *, method: Method, classes: Classes, stage: int | None = None, steps: int = STEPS
) -> Explanation:
    """`explain` with a network that is `ready`."""
    weight = next(network.parameters())
    channels = network.config.in_channels
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels or not len(images):
        given = tuple(images.shape) if isinstance(images, Tensor) else quoted(images)
        raise DataError(f"images are {given}; this network takes (N, {channels}, H, W)")
    if not images.is_floating_point():
        raise DataError(f"images are of type {images.dtype}; give them as the network takes them, normalised floats")
    if type(steps) is not int or steps < 2:
        raise ConfigError(f"steps is {quoted(steps)}; it must be an integer of at least 2")
    stage = stage or len(network.config.depths)
    # Tensors that were made in inference mode take no part in gradients, but their copies do.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
        parts = []
        for some in torch.split(images, TOGETHER):
            x = some.detach().to(weight.device, torch.float32, copy=True)
            with torch.no_grad():
                logits = network(x)
            chosen = _chosen(network, logits, classes)
            if method == "gradcam":
                maps = _grad_cam(network, x, chosen, stage)
            elif method == "ig":
                maps = _integrated_gradients(network, x, chosen, steps)
            else:
                maps = _occlusion(network, x, chosen, logits)
            shares = logits.sigmoid() if network.several_classes else logits.softmax(1)
            parts.append((maps, chosen, shares.gather(1, chosen)))
        maps, chosen, probabilities = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Explanation(maps, chosen, probabilities, method, stage if method == "gradcam" else None)


def class_numbers(names: Sequence[str | int], network: ResNet) -> list[int]:
    """The numbers of classes that are named, or numbered from 0; raises `ConfigError` for one that is not there."""
    known, count = network.classes or (), network.config.num_classes
    found = []
    for name in names:
        if name in known:
            number = known.index(str(name))
        elif isinstance(name, str):
            number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else count
        else:
            number = name
        if type(number) is not int or not 0 <= number < count:
            what = f"; the classes are numbered 0 to {count - 1}" if not known else nearest(str(name), known)
            raise ConfigError(f"the network has no class {quoted(name)}{what}")
        found.append(number)
    return found


def _chosen(network: ResNet, logits: Tensor, classes: Classes) -> Tensor:
    """Numbers of the classes to explain, int64 (N, K)."""
    if isinstance(classes, int) and not isinstance(classes, bool):
        if classes < 1:
            raise ConfigError(f"classes is {classes}; it must be at least 1, or names of classes")
        return logits.topk(min(classes, logits.shape[1])).indices
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise ConfigError(f"classes is {quoted(classes)}; it must be a number of classes or a list of their names")
    numbers = torch.tensor(class_numbers(classes, network), device=logits.device)
    return numbers.expand(len(logits), -1)


def _grad_cam(network: ResNet, x: Tensor, classes: Tensor, stage: int) -> Tensor:
    last = stage == len(network.config.depths)
    with torch.no_grad():
        (features,) = network.features(x, [stage])
        if last:  # a network with pre-activation has a norm and an activation before its pool
            features = network.act(network.norm(features))
    features.requires_grad_()
    # Layers may write over what they are given: a copy, so that the maps stay those whose gradients are taken.
    rest = features.clone()
    for layers in network.stages[stage:]:
        rest = layers(rest)
    logits = network.forward_head(rest) if last else network.head(rest)
    maps = []
    for k in range(classes.shape[1]):
        total = logits.gather(1, classes[:, k : k + 1]).sum()  # an image's logit depends on that image alone
        (gradient,) = torch.autograd.grad(total, features, retain_graph=k + 1 < classes.shape[1])
        maps.append((gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1).relu())
    return torch.stack(maps, 1)


def _integrated_gradients(network: ResNet, x: Tensor, classes: Tensor, steps: int) -> Tensor:
    attribution = need("captum.attr", extra="explain").IntegratedGradients(network, multiply_by_inputs=True)
    maps = []
    for k in range(classes.shape[1]):
        # The mean colour is 0 to the network.
        values = attribution.attribute(x, 0, classes[:, k], n_steps=steps, internal_batch_size=max(TOGETHER, len(x)))
        maps.append(values.sum(1).detach().float())
    return torch.stack(maps, 1)


def _occlusion(network: ResNet, x: Tensor, classes: Tensor, logits: Tensor) -> Tensor:
    height, width = x.shape[2:]
    step = max(1, round(min(height, width) / (CELLS + 1)))
    side = 2 * step  # a square overlaps half of the next
    rows, columns = (range(0, max(length - side, 0) + step, step) for length in (height, width))
    maps = x.new_zeros(*classes.shape, len(rows), len(columns))
    places = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    with torch.no_grad():
        for image, (pixels, chosen, whole) in enumerate(zip(x, classes, logits, strict=True)):
            for first in range(0, len(places), TOGETHER):
                some = places[first : first + TOGETHER]
                covered = pixels.expand(len(some), -1, -1, -1).clone()
                for n, (i, j) in enumerate(some):
                    covered[n, :, rows[i] : rows[i] + side, columns[j] : columns[j] + side] = 0
                falls = whole[chosen] - network(covered)[:, chosen]
                for n, (i, j) in enumerate(some):
                    maps[image, :, i, j] = falls[n]
    return maps
