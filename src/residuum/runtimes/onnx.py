"""A program as an ONNX model, and ONNX Runtime, which runs one on a CPU."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export import ExportedProgram

from residuum.errors import ConfigError, DeviceError, ExportError, first_line, quoted, shortened
from residuum.extras import need
from residuum.runtimes.quiet import quiet

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 18  # that torch writes; it leaves a model at 18 where an older one is asked for
MOST_BYTES = 2**31 - 2**20  # of a model that is one message in memory, as its format allows
EXTRA = "export"


def onnx_model(program: ExportedProgram, *, opset: int | None = None) -> "onnx.ModelProto":
    """A program with one input and one output as an ONNX model, whole in memory: `images` -> `logits`.

    Sizes that are free in the program are free in the model. `opset` is the version of ONNX's operators, torch's choice
    where it is left out. Raises `ConfigError` for an opset that cannot be had, `ExportError` where torch cannot convert
    the program, `MissingExtraError`.
    """
    need("onnxscript", extra=EXTRA)
    newest = int(need("onnx", extra=EXTRA).defs.onnx_opset_version())
    allowed = f"{OLDEST_OPSET} to {newest}"
    if opset is not None and (type(opset) is not int or not OLDEST_OPSET <= opset <= newest):
        raise ConfigError(f"opset is {quoted(opset)}; it must be an integer from {allowed}, or left out")
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                external_data=False,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        assert written is not None
        model: onnx.ModelProto = written.model_proto
    except Exception as error:  # torch's and onnxscript's own, of many kinds
        raise ExportError(f"torch cannot convert the network to ONNX: {first_line(error)}") from error
    got = next(entry.version for entry in model.opset_import if entry.domain == "")
    if opset is not None and got != opset:  # torch says so in a log and gives what it has
        raise ConfigError(f"the network cannot be written in opset {opset}; ask for another one from {allowed}")
    return model


class OnnxSession:
    """ONNX Runtime on the CPU: tensors in the order of the model's inputs -> its first output.

    `model` is the model's bytes or its file. `threads` is the number that computes, the library's choice where it is
    left out. Tensors are read where they lie; the output is new memory. Raises `ExportError` for a model that cannot be
    run, `MissingExtraError`.
    """

    precision = "fp32"

    def __init__(self, model: bytes | Path, *, threads: int | None = None) -> None:
        runtime = need("onnxruntime", extra=EXTRA)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone, for it raises what goes wrong
        if threads is not None:
            options.intra_op_num_threads = threads
        content = model if isinstance(model, bytes) else str(model)
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own, which are children of Exception alone
            what = "the model" if isinstance(model, bytes) else quoted(str(model))
            raise ExportError(f"ONNX Runtime cannot open {what}: {first_line(error)}") from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    @property
    def metadata(self) -> dict[str, str]:
        """What the model says beside its graph."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self._run(self._outputs[:1], tensors)[0]

    def every(self, *tensors: Tensor) -> list[Tensor]:
        """All outputs of the model."""
        return self._run(self._outputs, tensors)

    def _run(self, outputs: list[str], tensors: tuple[Tensor, ...]) -> list[Tensor]:
        given = dict(zip(self.inputs, (on_cpu(tensor).numpy() for tensor in tensors), strict=True))
        try:
            return [torch.from_numpy(array) for array in self._session.run(outputs, given)]
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run the network: {_reason(error)}") from error


def on_cpu(tensor: Tensor) -> Tensor:
    """The tensor as other libraries read it, packed and without a gradient; raises `DeviceError` for an accelerator's.

    It is copied only where it is not packed.
    """
    if tensor.device.type != "cpu":
        raise DeviceError(f"the tensor is on {tensor.device}, and this runtime computes on the CPU; move the tensor")
    return tensor.detach().contiguous()


def _reason(error: BaseException) -> str:
    """What ONNX Runtime says, on one line: which sizes are wrong stands on its second."""
    return shortened(" ".join(str(error).split()), 300).rstrip(". ")
