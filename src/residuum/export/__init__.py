"""Networks as files for other runtimes, and the proof that they compute the same."""

from residuum.export.proof import Proof as Proof
from residuum.export.write import export as export
