"""A program as an OpenVINO model, and OpenVINO, which runs one on a CPU."""

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from residuum.errors import ConfigError, DeviceError, ExportError, first_line, quoted
from residuum.extras import need
from residuum.runtimes.onnx import on_cpu

if TYPE_CHECKING:
    import openvino

EXTRA = "openvino"
Precision = Literal["auto", "fp32", "bf16"]
_HINTS = {"fp32": "f32", "bf16": "bf16"}
# What OpenVINO calls the precisions in which it computes; int8 layers stand in any of them.
_LOADING = threading.Lock()
_NAMES = {"f32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "f16": "fp16", "float16": "fp16"}


def core() -> "openvino.Core":
    """The core of this process, the only one, which stays; raises `MissingExtraError`.

    A core's CPU plugin puts a stack for signals of its own in place, and takes that away when it goes. Of two, the one
    that goes last brings back the stack of the other, which is no more: the next signal, Ctrl-C too, then ends the
    process (OpenVINO 2026.4). With one that stays, those that other libraries make and drop lie within its life.
    """
    with _LOADING:
        return _core()


@cache
def _core() -> "openvino.Core":
    made = need("openvino", extra=EXTRA).Core()
    if "CPU" in made.available_devices:
        made.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return made


def openvino_model(program: ExportedProgram) -> "openvino.Model":
    """A program as a model of OpenVINO, in the precision of its weights; sizes that are free in it stay free.

    Raises `ExportError` where OpenVINO cannot convert the program, `MissingExtraError`.
    """
    ov = need("openvino", extra=EXTRA)
    try:
        return ov.convert_model(program)
    except Exception as error:  # its own, of many kinds
        raise ExportError(f"OpenVINO cannot convert the network: {_reason(error)}") from error


class OpenVinoSession:
    """OpenVINO on the CPU: tensors in the order of the model's inputs -> its first output.

    `model` is a model in memory or its .xml or .onnx file. `precision` is fp32, bf16, or auto, the processor's own
    choice: bf16 where it has instructions for it, whatever precision the weights are in. The attribute `precision` is
    what the compiled model says that it runs in. `threads` is the number that computes, the library's choice where it
    is left out. Tensors are read where they lie; the output is new memory. Several threads may call it at once.

    Raises `ConfigError` for a precision that there is not, `DeviceError` for one that the processor has not,
    `ExportError` for a model that cannot be run, `MissingExtraError`.
    """

    def __init__(
        self, model: "openvino.Model | Path", *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        ov, runtime = need("openvino", extra=EXTRA), core()
        if precision not in get_args(Precision):
            raise ConfigError(f"precision is {quoted(precision)}; it must be one of {', '.join(get_args(Precision))}")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}  # one call at a time has all threads
        if precision != "auto":
            settings["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        opened = read_model(model) if isinstance(model, Path) else model
        try:
            self._compiled = runtime.compile_model(opened, "CPU", settings)
            ran_in = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        except Exception as error:
            what = quoted(str(model)) if isinstance(model, Path) else "the model"
            raise ExportError(f"OpenVINO cannot open {what}: {_reason(error)}") from error
        self.precision = _NAMES.get(ran_in, ran_in)
        if precision not in ("auto", self.precision):  # it takes the wish and does something else
            raise DeviceError(f"OpenVINO computes no {precision} on this processor; ask for {self.precision} or auto")
        self._tensor = ov.Tensor
        self._requests = threading.local()

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self._run(tensors, 1)[0]

    def every(self, *tensors: Tensor) -> list[Tensor]:
        """All outputs of the model."""
        return self._run(tensors, len(self._compiled.outputs))

    def _run(self, tensors: tuple[Tensor, ...], outputs: int) -> list[Tensor]:
        try:
            if not hasattr(self._requests, "own"):
                self._requests.own = self._compiled.create_infer_request()
            request = self._requests.own
            # Each input by itself: what `infer` does to sort a list of them takes a third of a small network's time.
            given = [on_cpu(tensor).numpy() for tensor in tensors]
            for place, array in enumerate(given):
                request.set_input_tensor(place, self._tensor(array, shared_memory=True))
            request.infer()
            # Its own memory for outputs is written over by the next call, so they are copied.
            return [torch.from_numpy(request.get_output_tensor(i).data).clone() for i in range(outputs)]
        except RuntimeError as error:
            if isinstance(error, DeviceError):
                raise
            raise ExportError(f"OpenVINO cannot run the network: {_reason(error)}") from error


def read_model(path: Path) -> "openvino.Model":
    """The model in an .xml or .onnx file; raises `ExportError` for one that cannot be read, `MissingExtraError`."""
    try:
        return core().read_model(str(path))
    except Exception as error:  # its own, of many kinds
        raise ExportError(f"OpenVINO cannot open {quoted(str(path))}: {_reason(error)}") from error


def metadata(model: "openvino.Model", key: str) -> str | None:
    """What a model says under a key beside its graph; None where it says nothing."""
    return str(model.get_rt_info([key]).value) if model.has_rt_info([key]) else None


def up_to(model: "openvino.Model", operator: str) -> "openvino.Model":
    """A model that gives what its operator of a name gives; raises `ExportError` where it has none."""
    found = next((op for op in model.get_ops() if op.get_friendly_name() == operator), None)
    if found is None:
        raise ExportError(f"the model has no operator {quoted(operator)}")
    return need("openvino", extra=EXTRA).Model([found.output(0)], model.get_parameters(), operator)


def _reason(error: BaseException) -> str:
    """What an error of OpenVINO's says: the lines before tell where in its source it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return told[-1].rstrip(".") if told else first_line(error)
