"""OpenVINO files: the network's model with what makes its input before it, of OpenVINO's own operators.

Its reader of ONNX ignores that scaling takes the mean of what it leaves out (antialias), without a word. Scaling is
therefore made of products with matrices here, which are computed in fp32 also where the network is in bf16.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from residuum.export.inputs import Input
from residuum.extras import need
from residuum.runtimes.exported import NOTE, PIXELS
from residuum.runtimes.openvino import EXTRA

if TYPE_CHECKING:
    import openvino

_SCALING = "scaling/"  # begins the names of the operators that scale


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
    if given.channels == 1:  # a transposition of one channel becomes another operator, which is not marked as below
        x = ops.reshape(x, ops.gather(ops.shape_of(x, "i32"), _whole([0, 3, 1, 2]), _whole(0)), False)
    else:
        x = ops.transpose(x, _whole([0, 3, 1, 2]))
    if given.order == "bgr":
        x = ops.gather(x, _whole([2, 1, 0]), _whole(1))
    if given.kind == "image":
        x = _scaled(x, given)
        for number, op in enumerate(ov.Model([x], [new], "scaling").get_ordered_ops()):
            if op.get_type_name() not in ("Parameter", "Result"):
                op.set_friendly_name(f"{_SCALING}{number}")
    x.set_friendly_name(PIXELS)
    assert given.preprocessing is not None
    for name, step in (("mean", ops.subtract), ("std", ops.divide)):
        values = (np.array(getattr(given.preprocessing, name), np.float32) * np.float32(255)).reshape(1, -1, 1, 1)
        x = step(ops.convert(x, "f32") if name == "mean" else x, ops.constant(values))
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(x.output(0))
    return ov.Model(network.get_results(), [new], "residuum")


def _scaled(x: "openvino.Node", given: Input) -> "openvino.Node":
    """uint8 (N, C, any, any) to (N, C, *image_size), as `Scale`."""
    ops = need("openvino.opset13", extra=EXTRA)
    assert given.preprocessing is not None
    how, (height, width) = given.preprocessing, given.image_size
    size, begin = _whole([height, width]), _whole([0, 0])
    if how.crop:
        up, across = (round(side / how.crop) for side in (height, width))
        sides = ops.gather(ops.shape_of(x, "i32"), _whole([2, 3]), _whole(0))
        other = ops.gather(ops.shape_of(x, "i32"), _whole([3, 2]), _whole(0))
        wanted = ops.divide(ops.multiply(sides, _whole([across, up])), other)  # of integers: what is over is cut off
        size = ops.maximum(wanted, _whole([up, across]))
        over = ops.subtract(size, _whole([height, width]))
        half = ops.divide(over, _whole([2, 2]))
        odd = ops.multiply(ops.mod(over, _whole([2, 2])), ops.mod(half, _whole([2, 2])))
        begin = ops.add(half, odd)
    if how.interpolation == "nearest":
        where = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        x = ops.interpolate(x, size, "nearest", "sizes", axes=_whole([2, 3]), **where)
        return ops.slice(x, begin, ops.add(begin, _whole([height, width])), _whole([1, 1]), _whole([2, 3]))
    x = ops.convert(x, "f32")
    for axis, count in ((3, width), (2, height)):
        one = _whole(axis - 2)
        length, first = (ops.gather(each, one, _whole(0)) for each in (size, begin))
        x = _along(x, axis, length, first, count, cubic=how.interpolation == "bicubic")
    return ops.convert(x, "u8")


def _along(
    x: "openvino.Node", axis: int, length: "openvino.Node", first: "openvino.Node", count: int, *, cubic: bool
) -> "openvino.Node":
    """One axis scaled to `length` pixels, of which `count` from `first` on are made: whole numbers from 0 to 255.

    As torch scales bytes: weights are whole numbers below 2^15 over a power of two, the largest that allows it. It is a
    product with a matrix, as OpenVINO prepares its own operator anew, for seconds, at each size that it has not seen.
    """
    ops = need("openvino.opset13", extra=EXTRA)

    def number(node: "openvino.Node | int | list[int]") -> "openvino.Node":
        return ops.convert(_whole(node) if isinstance(node, int | list) else node, "f32")

    def over(node: "openvino.Node", other: "openvino.Node") -> "openvino.Node":
        return ops.multiply(node, ops.power(other, ops.constant(np.float32(-1))))  # a division is made of new operators

    def nearest(node: "openvino.Node") -> "openvino.Node":
        return ops.floor(ops.add(node, half))

    half = ops.constant(np.float32(0.5))

    side = ops.gather(ops.shape_of(x, "i32"), _whole(axis), _whole(0))
    # The first pixel of all, whose weights are the largest of a narrow border, and those that are wanted.
    wanted = ops.concat([_whole([0]), ops.add(first, _whole(list(range(count))))], 0)
    here = ops.unsqueeze(ops.add(ops.multiply(wanted, _whole(2)), _whole(1)), _whole([0, 1, 3]))
    there = ops.add(ops.multiply(ops.range(_whole(0), side, _whole(1), "i32"), _whole(2)), _whole(1))
    apart = ops.abs(ops.subtract(ops.multiply(there, length), ops.multiply(here, side)))
    reach = ops.multiply(ops.maximum(side, length), _whole(2))  # distances are integers, and 1 is so much
    if cubic:
        t = over(number(apart), number(reach))
        # Keys' polynomials with a = -1/2: (3t - 5) t t / 2 + 1 below 1, and ((5 - t) t - 8) t / 2 + 2 below 2.
        three = ops.subtract(ops.multiply(t, number(3)), number(5))
        inner = ops.add(ops.multiply(ops.multiply(ops.multiply(three, t), t), half), number(1))
        five = ops.subtract(ops.multiply(ops.subtract(number(5), t), t), number(8))
        outer = ops.add(ops.multiply(ops.multiply(five, t), half), number(2))
        outer = ops.select(ops.less(t, number(2)), outer, number(0))
        weights = ops.select(ops.less(t, number(1)), inner, outer)
    else:
        weights = number(ops.maximum(ops.subtract(reach, apart), _whole(0)))
    weights = over(weights, ops.reduce_sum(weights, _whole([3]), True))
    largest = ops.reduce_max(weights, _whole([0, 1, 2, 3]), False)
    below = ops.less(nearest(ops.multiply(largest, number([2**p for p in range(1, 23)]))), number(2**15))
    power = ops.reduce_sum(ops.convert(below, "i32"), _whole([0]), False)
    unit = number(ops.gather(_whole([2**p for p in range(23)]), power, _whole(0)))
    part = ops.gather(ops.constant(np.float32(2) ** -np.arange(23, dtype=np.float32)), power, _whole(0))
    weights = ops.multiply(nearest(ops.multiply(ops.abs(weights), unit)), ops.sign(weights))
    weights = ops.slice(weights, _whole([1]), _whole([count + 1]), _whole([1]), _whole([2]))
    product = ops.matmul(x, weights, False, True) if axis == 3 else ops.matmul(weights, x, False, False)
    return ops.clamp(nearest(ops.multiply(product, part)), 0.0, 255.0)


def _whole(values: int | list[int]) -> "openvino.Node":
    return need("openvino.opset13", extra=EXTRA).constant(np.array(values, np.int32))


def write(model: "openvino.Model", note: dict[str, Any], path: Path, *, half: bool = False) -> None:
    """The .xml and, beside it, the .bin with the weights; `half` stores these in fp16."""
    ov = need("openvino", extra=EXTRA)
    model.set_rt_info(json.dumps(note, sort_keys=True), [NOTE])
    ov.save_model(model, str(path), compress_to_fp16=half)
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if layer.get("name", "").startswith(_SCALING):  # what OpenVINO calls an operator that stays in fp32
            found = layer.find("rt_info")
            facts = ElementTree.SubElement(layer, "rt_info") if found is None else found
            ElementTree.SubElement(facts, "attribute", name="precise", version="0")
    tree.write(path)
