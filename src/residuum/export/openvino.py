"""OpenVINO files: the network's model with what makes its input before it, of OpenVINO's own operators.

Its reader of ONNX ignores that scaling takes the mean of what it leaves out (antialias), without a word; its own
operator for Pillow's way of scaling is right.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from residuum.export.inputs import Input
from residuum.extras import need
from residuum.runtimes.exported import NOTE, PIXELS
from residuum.runtimes.openvino import EXTRA

if TYPE_CHECKING:
    import openvino

_MODES = {"bilinear": "bilinear_pillow", "bicubic": "bicubic_pillow", "nearest": "nearest"}


def with_input(network: "openvino.Model", given: Input) -> "openvino.Model":
    """A network's model, float32 (N, C, H, W) -> logits, with the input's scaling and normalising before it.

    The network may be quantised: nothing that is put before it is. The network's model itself is changed. The operator
    called `pixels` gives uint8 (N, C, *image_size).
    """
    ov = need("openvino", extra=EXTRA)
    [old] = network.get_parameters()
    old.output(0).get_tensor().set_names({"images"})
    network.get_results()[0].output(0).get_tensor().set_names({"logits"})
    if given.kind == "normalized":
        return network
    ops = need("openvino.opset13", extra=EXTRA)
    size = given.image_size if given.kind == "pixels" and not given.dynamic_size else (-1, -1)
    new = ops.parameter(ov.PartialShape([-1, *size, given.channels]), np.uint8, name="images")
    new.output(0).get_tensor().set_names({"images"})
    x = new
    if given.order == "bgr":
        x = ops.gather(x, _whole([2, 1, 0]), _whole(3))
    x = ops.transpose(x, _whole([0, 3, 1, 2]))
    if given.kind == "image":
        x = _scaled(x, given)
    x.set_friendly_name(PIXELS)
    assert given.preprocessing is not None
    for name, step in (("mean", ops.subtract), ("std", ops.divide)):
        values = (np.array(getattr(given.preprocessing, name), np.float32) * np.float32(255)).reshape(1, -1, 1, 1)
        x = step(ops.convert(x, "f32") if name == "mean" else x, ops.constant(values))
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(x.output(0))
    return ov.Model(network.get_results(), [new], "residuum")


def _scaled(x: "openvino.Node", given: Input) -> "openvino.Node":
    """uint8 (N, C, any, any) to (N, C, *image_size): as `Scale`, in integers, for OpenVINO may compute others in bf16."""
    ops = need("openvino.opset13", extra=EXTRA)
    assert given.preprocessing is not None
    how, (height, width) = given.preprocessing, given.image_size

    def interpolated(size: "openvino.Node") -> "openvino.Node":
        plain = how.interpolation == "nearest"
        return ops.interpolate(
            x, size, _MODES[how.interpolation], "sizes", axes=_whole([2, 3]), cube_coeff=-0.5,
            **({"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if plain else {}),
        )  # fmt: skip

    if how.crop == 0:
        return interpolated(_whole([height, width]))
    up, across = (round(side / how.crop) for side in (height, width))
    sides = ops.gather(ops.shape_of(x), _whole([2, 3]), _whole(0))
    other = ops.gather(ops.shape_of(x), _whole([3, 2]), _whole(0))
    wanted = ops.divide(ops.multiply(sides, _whole([across, up])), other)  # of integers: what is over is cut off
    size = ops.maximum(wanted, _whole([up, across]))
    over = ops.subtract(size, _whole([height, width]))
    half = ops.divide(over, _whole([2, 2]))
    odd = ops.multiply(ops.mod(over, _whole([2, 2])), ops.mod(half, _whole([2, 2])))
    begin = ops.add(half, odd)
    end = ops.add(begin, _whole([height, width]))
    return ops.slice(interpolated(size), begin, end, _whole([1, 1]), _whole([2, 3]))


def _whole(values: int | list[int]) -> "openvino.Node":
    return need("openvino.opset13", extra=EXTRA).constant(np.array(values, np.int64))


def write(model: "openvino.Model", note: dict[str, Any], path: Path, *, half: bool = False) -> None:
    """The .xml and, beside it, the .bin with the weights; `half` stores these in fp16."""
    ov = need("openvino", extra=EXTRA)
    model.set_rt_info(json.dumps(note, sort_keys=True), [NOTE])
    ov.save_model(model, str(path), compress_to_fp16=half)
