"""ONNX files: the network's model with what makes its input before it, one file, the same bytes each time."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from residuum.errors import ExportError, first_line
from residuum.export.inputs import Input, Normal, Scale
from residuum.extras import need
from residuum.preprocessing import Preprocessing
from residuum.runtimes.exported import NOTE, PIXELS
from residuum.runtimes.onnx import EXTRA, MOST_BYTES, onnx_model
from residuum.runtimes.program import captured

if TYPE_CHECKING:
    import onnx


class _Entrance(nn.Module):
    """From the file's input to normalised images, and the pixels between."""

    def __init__(self, given: Input, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.scale, self.normal = Scale(given), Normal(preprocessing)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.scale(images)
        return self.normal(pixels), pixels


def with_input(network: "onnx.ModelProto", given: Input, opset: int | None = None) -> "onnx.ModelProto":
    """A network's model, `images` float32 -> `logits`, with the input's scaling and normalising before it.

    The network may be quantised: nothing that is put before it is. What goes from one part to the next is called
    `pixels`, uint8 (N, C, *image_size), and `normal`.
    """
    if given.kind == "normalized":
        return network
    assert given.preprocessing is not None
    opset = opset or next(entry.version for entry in network.opset_import if entry.domain == "")
    entrance = _Entrance(given, given.preprocessing).eval()
    return _joined(onnx_model(captured(entrance, given.example, given.free), opset=opset), network)


def _joined(entrance: "onnx.ModelProto", network: "onnx.ModelProto") -> "onnx.ModelProto":
    """One model of two, `images` -> `logits`."""
    onnx = need("onnx", extra=EXTRA)
    compose = need("onnx.compose", extra=EXTRA)
    first = compose.add_prefix(entrance, "entrance.")
    normal, pixels = (output.name for output in first.graph.output)
    names = {normal: "normal", pixels: PIXELS}
    for node in first.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    first.graph.output[0].name = "normal"
    del first.graph.output[1:]
    del first.metadata_props[:], network.metadata_props[:]
    first.ir_version = network.ir_version = max(first.ir_version, network.ir_version)
    try:
        model = compose.merge_models(first, network, io_map=[("normal", "images")])
    except Exception as error:  # onnx's own
        raise ExportError(f"the network cannot be joined with its preprocessing: {first_line(error)}") from error
    for node in model.graph.node:
        node.input[:] = ["images" if name == "entrance.images" else name for name in node.input]
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
