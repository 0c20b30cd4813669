"""Networks in 8-bit integers: calibration, two quantisers, what each block lost, and the gate on accuracy."""

from residuum.export.int8.calibration import Calibration as Calibration
from residuum.export.int8.calibration import calibration as calibration
from residuum.export.int8.gate import GateError as GateError
from residuum.export.int8.gate import Quantized as Quantized
from residuum.export.int8.gate import quantize as quantize
