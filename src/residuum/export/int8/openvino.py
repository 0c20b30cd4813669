"""An OpenVINO model in 8-bit integers, by NNCF."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.export import ExportedProgram

from residuum.errors import ExportError, first_line
from residuum.export.int8.capture import HEAD
from residuum.extras import need
from residuum.runtimes.openvino import OpenVinoSession, core, openvino_model
from residuum.runtimes.quiet import quiet

if TYPE_CHECKING:
    import openvino

EXTRA = "int8"
# How the range of a tensor follows from the images: the mean of their extremes, or what loses least of a histogram.
METHODS = {"mean-minmax": None, "histogram": "HISTOGRAM"}


class OpenVinoNetwork:
    """A float network for OpenVINO, images (N, C, H, W) -> logits, whose blocks are known by name."""

    runtime = "openvino"
    methods = tuple(METHODS)

    def __init__(self, program: ExportedProgram, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.model = openvino_model(program)
        self.model.inputs[0].get_node().set_friendly_name("images")
        logits, *blocks = self.model.get_results()
        for result, name in zip((*blocks, logits), (*names[:-1], HEAD), strict=False):
            maker = result.input_value(0).get_node()
            # Two blocks may have one output, where the second does nothing.
            maker.set_friendly_name(f"{name}, out")
        for result in blocks:
            self.model.remove_result(result)

    def quantized(
        self,
        images: Sequence[Tensor],
        *,
        method: str,
        keep: Sequence[str] = (),
        reduced: bool = False,
        per_channel: bool = True,
    ) -> "openvino.Model":
        """The model in 8-bit integers: weights signed, a scale a channel; activations a scale a tensor.

        The blocks `keep` stay in float. `images` are the batches whose values set the ranges. `reduced` takes 7 bits
        for weights, for processors whose sums of 8-bit products saturate.
        """
        os.environ.setdefault("NNCF_CI", "1")  # else it tells its makers that it was used
        with quiet():
            nncf = need("nncf", extra=EXTRA)
            advanced = need("nncf.quantization.advanced_parameters", extra=EXTRA)
            ranges = need("nncf.quantization.range_estimator", extra=EXTRA)
        told: dict[str, Any] = {}
        if reduced:
            told["overflow_fix"] = advanced.OverflowFix.ENABLE
        if (found_by := METHODS[method]) is not None:
            told["activations_range_estimator_params"] = getattr(ranges.RangeEstimatorParametersSet, found_by)
        if not per_channel:
            told["weights_quantization_params"] = advanced.QuantizationParameters(per_channel=False)
        single = [image[None].contiguous().numpy() for batch in images for image in batch]
        ignored = [node for name in keep for node in self._nodes(name)]
        scope = nncf.IgnoredScope(names=ignored, validate=False) if ignored else None
        core()  # NNCF's own ones then come and go within its life
        with quiet():
            try:
                return nncf.quantize(
                    self.model.clone(),
                    nncf.Dataset(single),
                    subset_size=len(single),
                    ignored_scope=scope,
                    advanced_parameters=nncf.AdvancedQuantizationParameters(**told),
                )
            except Exception as error:  # its own, of many kinds
                raise ExportError(f"NNCF cannot quantize the network: {first_line(error)}") from error

    def _nodes(self, block: str) -> list[str]:
        """The names of the operations between the output of the block before and that of this one."""
        operations = {node.get_friendly_name(): node for node in self.model.get_ops()}
        place = self.names.index(block)
        edge = {f"{self.names[place - 1]}, out"} if place else set()
        found: dict[str, Any] = {}
        todo = [operations[f"{block}, out"]]
        while todo:
            node = todo.pop()
            name = node.get_friendly_name()
            if name in edge or name in found or node.get_type_name() == "Parameter":
                continue
            found[name] = node
            todo += [value.get_node() for value in node.input_values()]
        return [name for name, node in found.items() if node.get_type_name() != "Constant"]

    @staticmethod
    def of_one_scale(model: "openvino.Model") -> list[str]:
        """The convolutions in integers whose weights have one scale for all of their several channels."""
        found = []
        for operation in model.get_ops():
            if operation.get_type_name() not in ("Convolution", "GroupConvolution"):
                continue
            weights = operation.input_value(1)
            node = weights.get_node()
            while node.get_type_name() in ("Reshape", "Convert"):
                node = node.input_value(0).get_node()
            if node.get_type_name() == "Multiply" and math.prod(weights.get_shape()[:-3]) > 1:
                scale = min(math.prod(value.get_shape()) for value in node.input_values())
                found += [operation.get_friendly_name()] if scale == 1 else []
        return found

    def session(self, model: "openvino.Model", threads: int | None = None) -> OpenVinoSession:
        """The model as it is run."""
        return OpenVinoSession(model, threads=threads)

    def outputs(self, model: "openvino.Model", *, apart: bool) -> Callable[..., list[Tensor]]:
        """The output of every block: with `apart` each block is given its input, the output of the float block before.

        The inputs are then the images and the outputs of all blocks but the last. Computed in float32, where not in
        integers, so that what is seen is what the integers lose.
        """
        ov = need("openvino", extra=EXTRA)
        opened = model.clone()
        operations = {node.get_friendly_name(): node for node in opened.get_ops()}
        outputs, given = [], []
        for name in self.names:
            value = operations[f"{name}, out"].output(0)
            fakes = [i for i in value.get_target_inputs() if i.get_node().get_type_name() == "FakeQuantize"]
            after = fakes[0].get_node().output(0) if fakes else value
            if apart and name != HEAD:
                parameter = ov.opset13.parameter(value.get_partial_shape(), ov.Type.f32, name=f"{name}, given")
                given.append(parameter)
                for source in (value, *(fake.get_node().output(0) for fake in fakes)):
                    for target in source.get_target_inputs():
                        if target.get_node().get_type_name() != "FakeQuantize" or source is not value:
                            target.replace_source_output(parameter.output(0))
            outputs.append(after)
        results = [ov.opset13.result(value) for value in outputs]
        whole = ov.Model(results, [*opened.get_parameters(), *given], "blocks")
        return OpenVinoSession(whole, precision="fp32").every

    def write(self, model: "openvino.Model", path: Path) -> None:
        """Write the model to a file that ends in .xml, and its weights beside it."""
        need("openvino", extra=EXTRA).save_model(model, str(path), compress_to_fp16=False)
