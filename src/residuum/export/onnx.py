"""ONNX files: the network's model with what makes its input before it, one file, the same bytes each time."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from residuum.errors import ExportError, first_line
from residuum.export.inputs import Input, Normal, Scale
from residuum.extras import need
from residuum.runtimes.exported import NOTE, PIXELS
from residuum.runtimes.onnx import EXTRA, MOST_BYTES, onnx_model
from residuum.runtimes.program import captured

if TYPE_CHECKING:
    import onnx


def with_input(network: "onnx.ModelProto", given: Input, opset: int | None = None) -> "onnx.ModelProto":
    """A network's model, `images` float32 -> `logits`, with the input's scaling and normalising before it.

    The network may be quantised: nothing that is put before it is. What goes from one part to the next is called
    `pixels`, uint8 (N, C, *image_size), and `normal`.
    """
    model = network
    if given.kind != "normalized":
        assert given.preprocessing is not None
        size = (2, given.channels, *given.image_size)
        free = (0, 2, 3) if given.dynamic_size else (0,)
        opset = opset or next(entry.version for entry in network.opset_import if entry.domain == "")
        pixels = torch.zeros(size, dtype=torch.uint8)
        model = _joined(_part(Normal(given.preprocessing), pixels, free, opset), model, "normal")
        model = _joined(_part(Scale(given), given.example, given.free, opset), model, PIXELS)
    return model


def _part(module: nn.Module, example: torch.Tensor, free: tuple[int, ...], opset: int) -> "onnx.ModelProto":
    return onnx_model(captured(module.eval(), example, free), opset=opset)


def _joined(first: "onnx.ModelProto", second: "onnx.ModelProto", between: str) -> "onnx.ModelProto":
    """One model of two, `images` -> `logits`; what goes from the first to the second is called `between`."""
    onnx = need("onnx", extra=EXTRA)
    compose = need("onnx.compose", extra=EXTRA)
    first = compose.add_prefix(first, f"{between}.")
    for node in first.graph.node:
        node.output[:] = [between if name == f"{between}.logits" else name for name in node.output]
        node.input[:] = [between if name == f"{between}.logits" else name for name in node.input]
    first.graph.output[0].name = between
    del first.metadata_props[:], second.metadata_props[:]
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    try:
        model = compose.merge_models(first, second, io_map=[(between, "images")])
    except Exception as error:  # onnx's own
        raise ExportError(f"the network cannot be joined with its preprocessing: {first_line(error)}") from error
    given = f"{between}.images"
    for node in model.graph.node:
        node.input[:] = ["images" if name == given else name for name in node.input]
    model.graph.input[0].name = "images"
    assert isinstance(model, onnx.ModelProto)
    return model


def write(model: "onnx.ModelProto", note: dict[str, Any], path: Path) -> None:
    """One file, with the note in its metadata; raises `ExportError` for a model that is none or too large for one."""
    onnx = need("onnx", extra=EXTRA)
    size = model.ByteSize()
    if size > MOST_BYTES:
        raise ExportError(f"the network takes {size:,} bytes, more than fit an ONNX file; export to openvino or pt2")
    _named_axes(model)
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = NOTE, json.dumps(note, sort_keys=True)
    for node in model.graph.node:  # where in the source each came from, which differs from one place to the next
        del node.metadata_props[:]
        node.doc_string = ""
    model.doc_string = model.graph.doc_string = ""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"onnx finds the model wrong: {first_line(error)}") from error
    path.write_bytes(model.SerializeToString(deterministic=True))


def _named_axes(model: "onnx.ModelProto") -> None:
    """Names for the free axes of input and output that say what they are."""
    [images], [logits] = model.graph.input, model.graph.output
    axes = images.type.tensor_type.shape.dim
    names = ["batch", "height", "width", ""] if len(axes) == 4 and axes[3].dim_value in (1, 3) else None
    names = names or ["batch", "", "height", "width"]
    for axis, name in zip(axes, names, strict=True):
        if name and not axis.HasField("dim_value"):
            axis.dim_param = name
    if not logits.type.tensor_type.shape.dim[0].HasField("dim_value"):
        logits.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # they speak of the axes by their old names
