"""An ONNX model in 8-bit integers, by ONNX Runtime's static quantisation."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.export import ExportedProgram

from residuum.errors import ExportError, first_line
from residuum.export.int8.capture import HEAD
from residuum.extras import need
from residuum.runtimes.onnx import OnnxSession, onnx_model
from residuum.runtimes.quiet import quiet

if TYPE_CHECKING:
    import onnx

EXTRA = "export"
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
DEFAULT = "minmax"


class OnnxNetwork:
    """A float network for ONNX Runtime, images (N, C, H, W) -> logits, whose blocks are known by name."""

    runtime = "onnx"
    methods = tuple(METHODS)

    def __init__(self, program: ExportedProgram, names: Sequence[str], *, opset: int | None = None) -> None:
        self.names = tuple(names)
        self.model = onnx_model(program, opset=opset)
        _name_outputs(self.model, names)
        del self.model.graph.output[1:]

    def quantized(
        self,
        images: Sequence[Tensor],
        *,
        method: str,
        keep: Sequence[str] = (),
        reduced: bool = False,
        per_channel: bool = True,
    ) -> "onnx.ModelProto":
        """The model in 8-bit integers: weights signed, a scale a channel; activations unsigned, a scale a tensor.

        The blocks `keep` stay in float. `images` are the batches whose values set the ranges. `reduced` takes 7 bits
        for weights, for processors whose sums of 8-bit products saturate.
        """
        library = need("onnxruntime.quantization", extra=EXTRA)
        onnx = need("onnx", extra=EXTRA)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        excluded = [node.name for name in keep for node in self._nodes(name)]
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder, "int8.onnx")
            try:
                library.quantize_static(
                    model,
                    path,
                    _Reader(images),
                    quant_format=library.QuantFormat.QDQ,
                    per_channel=per_channel,
                    reduce_range=reduced,
                    activation_type=library.QuantType.QUInt8,
                    weight_type=library.QuantType.QInt8,
                    nodes_to_exclude=excluded,
                    calibrate_method=getattr(library.CalibrationMethod, METHODS[method]),
                    # Of 256 different logits two are too often the same.
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"], "CalibPercentile": 99.999},
                )
            except Exception as error:  # its own, of many kinds
                raise ExportError(f"ONNX Runtime cannot quantize the network: {first_line(error)}") from error
            return onnx.load(path)

    def _nodes(self, block: str) -> list[Any]:
        """The nodes between the output of the block before and that of this one."""
        makers = {output: node for node in self.model.graph.node for output in node.output}
        place = self.names.index(block)
        edge = {self.names[place - 1]} if place else set()
        found: dict[str, Any] = {}
        todo = [self._output(block)]
        while todo:
            value = todo.pop()
            if value in edge or value not in makers or makers[value].name in found:
                continue
            found[makers[value].name] = makers[value]
            todo += makers[value].input
        return list(found.values())

    @staticmethod
    def _output(block: str) -> str:
        return "logits" if block == HEAD else block

    @staticmethod
    def of_one_scale(model: "onnx.ModelProto") -> list[str]:
        """The convolutions in integers whose weights have one scale for all of their several channels."""
        sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        scaled = {
            node.output[0]: (sizes[node.input[0]], sizes[node.input[1]])
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in sizes
        }
        found = [(node.name, scaled[node.input[1]]) for node in model.graph.node
                 if node.op_type == "Conv" and node.input[1] in scaled]  # fmt: skip
        return [name for name, (weights, scale) in found if weights[0] > 1 and math.prod(scale) == 1]

    def session(self, model: "onnx.ModelProto", threads: int | None = None) -> OnnxSession:
        """The model as it is run."""
        return OnnxSession(model.SerializeToString(), threads=threads)

    def outputs(self, model: "onnx.ModelProto", *, apart: bool) -> Callable[..., list[Tensor]]:
        """The output of every block: with `apart` each block is given its input, the output of the float block before.

        The inputs are then the images and the outputs of all blocks but the last.
        """
        onnx = need("onnx", extra=EXTRA)
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        graph = opened.graph
        values = [self._output(name) for name in self.names]
        # What comes after a block: its output in 8 bits, where it is quantized. An activation may be part of that.
        eights = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
        floats = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        after = {value: floats.get(eights.get(value, ""), value) for value in values}
        del graph.output[:]
        graph.output.extend(onnx.helper.make_empty_tensor_value_info(after[value]) for value in values)
        if apart:
            given = {name: f"{value}, given" for value in values[:-1] for name in (value, after[value])}
            for node in graph.node:
                if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] == after.get(
                    node.input[0]
                ):
                    node.input[:] = [given.get(value, value) for value in node.input]
            graph.input.extend(
                onnx.helper.make_tensor_value_info(f"{value}, given", onnx.TensorProto.FLOAT, None)
                for value in values[:-1]
            )
        return OnnxSession(opened.SerializeToString()).every

    def write(self, model: "onnx.ModelProto", path: Path) -> None:
        """Write the model to a file."""
        need("onnx", extra=EXTRA).save(model, str(path))


class _Reader:
    """What ONNX Runtime takes images from."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.images, None)
        return None if images is None else {"images": images.contiguous().numpy()}


def _name_outputs(model: "onnx.ModelProto", names: Sequence[str]) -> None:
    """Call the values behind the logits as their blocks are called."""
    graph = model.graph
    values = [output.name for output in graph.output]
    assert len(values) == len(names)
    new = dict(zip(values, ("logits", *names[:-1]), strict=True))
    for node in graph.node:
        node.input[:] = [new.get(value, value) for value in node.input]
        node.output[:] = [new.get(value, value) for value in node.output]
    for entry in (*graph.output, *graph.value_info):
        entry.name = new.get(entry.name, entry.name)
    count: defaultdict[str, int] = defaultdict(int)
    for node in graph.node:  # by these names nodes are left out
        node.name = node.name or f"{node.op_type}_{count[node.op_type]}"
        count[node.op_type] += 1
