"""Contenders of known speed and size, for tests of the measuring; a worker process imports them by name."""

import os
import time

import torch

from residuum.bench.contenders import Step

SECONDS = {"same": 0.03, "twin": 0.03, "slowed": 0.0315}
LARGE = 1 << 20  # bytes that a step of "large" takes


def prepare(name, cell):
    """A step that sleeps for a known time; or one that allocates, fails or kills its process."""

    if name.startswith("matmul"):
        return Step(int, int, list, "fp32")

    def run():
        if name == "broken":
            raise ValueError("no such kernel\nand a second line")
        if name == "dying":
            os._exit(3)
        if name == "large":
            torch.empty(LARGE, dtype=torch.uint8)
        time.sleep(SECONDS.get(name, 0.001))

    return Step(run, run, list, "fp32")
