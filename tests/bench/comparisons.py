"""Comparisons made up for tests, with times of known ratios."""

import numpy as np

from residuum.bench.results import Comparison, Row, WorkloadResult

SETTINGS = {
    "model": "resnet18", "task": "train", "precision": "fp32", "memory_format": "nchw", "mode": "eager",
    "batch_size": 8, "image_size": [224, 224], "device": "cpu",
}  # fmt: skip


def times(seconds, seed, noise=0.01, repetitions=3):
    random = np.random.default_rng(seed)
    found = seconds * np.exp(noise * random.standard_normal((repetitions, 3)))
    return tuple(tuple(map(float, repetition)) for repetition in found)


def workload(name="resnet18 training", ours=0.5, machine=0.01, seed=0, noise=0.01, repetitions=3, **settings):
    def measured(seconds, place):
        return times(seconds, seed + place, noise, repetitions)

    rows = (
        Row("residuum", measured(ours, 0), "fp32", peak=100 << 20, grown=300 << 20),
        Row("torchvision", measured(0.6, 1), "fp32", peak=100 << 20, grown=310 << 20),
        Row("timm", (), error="it has no resnet18"),
    )
    references = {"fp32": times(machine, seed + 2, repetitions=repetitions)}
    return WorkloadResult(name, SETTINGS | settings, 10**11, rows, references, 2 * 10**9)


def comparison(*workloads):
    return Comparison({"cpu": "A <fast> one"}, "residuum bench", "2026-01-02", "torchvision", workloads)
