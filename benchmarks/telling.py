"""The share of an epoch's processor time that telling how it goes takes: console, clock and TensorBoard, on the digits.

python benchmarks/telling.py
"""

import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from rich.console import Console

from residuum.train import Callback, ConsoleLogger, Execution, Recipe, fit, trackers
from residuum.train.clock import Clock

TOLD = [(kind, name) for kind in (ConsoleLogger, trackers.TensorBoard) for name in ("look", "epoch", "saved")]


def main() -> None:
    spent, marks = [0.0], []

    def timed(kind, name):
        plain = getattr(kind, name)

        def call(*args):
            begin = time.process_time()
            plain(*args)
            spent[0] += time.process_time() - begin

        patch.object(kind, name, call).start()

    for kind, name in [*TOLD, (Clock, "read")]:
        timed(kind, name)

    class Mark(Callback):
        def epoch(self, row, epochs):
            marks.append((time.process_time(), spent[0]))

    console = ConsoleLogger(Console(file=io.StringIO(), force_terminal=True, width=100))
    with TemporaryDirectory() as folder:
        recipe = Recipe.default("digits").replace({"epochs": 6, "precision": "fp32"})
        fit(recipe, out=Path(folder) / "run", execution=Execution(log=("tensorboard",)), callbacks=[console, Mark()])
    patch.stopall()
    (begun, before), (ended, after) = marks[0], marks[-1]  # libraries are imported in the first epoch
    print(f"{100 * (after - before) / (ended - begun):.2f} % of the processor's time")


if __name__ == "__main__":
    main()
