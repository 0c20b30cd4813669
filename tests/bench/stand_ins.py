"""Contenders of known speed and size, for tests of the measuring; a process imports them by name."""

import math
import os
import random
from contextlib import contextmanager

import torch

from residuum.bench.measure import Here
from residuum.bench.steps import Step

SECONDS = {"same": 0.3, "twin": 0.3, "slowed": 0.315}
LARGE = 1 << 20  # bytes that a step of "large" takes


class Clock:
    """A clock on which contenders sleep without anybody waiting, on a machine whose speed drifts from step to step."""

    def __init__(self):
        self.seconds, self.random = 0.0, random.Random(0)

    def sleep(self, seconds):
        self.seconds += seconds * (1 + 0.05 * math.sin(self.seconds / 20) + 0.002 * self.random.random())

    def now(self, device):
        return self.seconds


CLOCK = Clock()


def prepare(contender, workload):
    """A step that sleeps for a known time; or one that allocates, fails or kills its process."""
    name = contender.name
    if name.startswith("matmul"):
        return Step(lambda: CLOCK.sleep(0.05), int, list, "fp32")

    def run():
        if name == "broken":
            raise ValueError("no such kernel\nand a second line")
        if name == "dying":
            os._exit(3)
        if name == "large":
            torch.empty(LARGE, dtype=torch.uint8)
        CLOCK.sleep(SECONDS.get(name, 0.01))

    return Step(run, run, list, "bf16" if name == "half" else "fp32")


@contextmanager
def here(contenders, threads, prepare):
    """All contenders in this process, which is quicker to have than one for each."""
    yield {contender: Here(prepare) for contender in contenders}
