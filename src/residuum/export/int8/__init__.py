"""Networks in 8-bit integers: calibration, two quantisers, what each block lost, and the gate on accuracy."""

from residuum.export.int8.calibration import Calibration as Calibration
from residuum.export.int8.calibration import calibration as calibration
from residuum.export.int8.quantize import GateError as GateError
from residuum.export.int8.quantize import Quantized as Quantized
from residuum.export.int8.quantize import quantize as quantize
