"""Studies without training: a function of variant and seed gives the metrics."""

import numpy as np

from residuum.ablate.results import CellResult, StudyResult, Tried, Tuned, Variant


def cell(variant, seed, metric=None, *, status="done", **given):
    metrics = {} if metric is None else metric if isinstance(metric, dict) else {"test_accuracy": float(metric)}
    defaults = {"key": f"{variant}-{seed}", "command": f"residuum ablate study.toml --only {variant} --seed {seed}"}
    return CellResult(variant, seed, status=status, metrics=metrics, **(defaults | given))


def study(values, **given):
    """Of `{variant: metrics, one a seed}`, the first the base; a metric of None leaves the cell out."""
    names = list(values)
    seeds = range(max(map(len, values.values())))
    cells = [cell(name, s, values[name][s]) for name in names for s in seeds if values[name][s] is not None]
    defaults = {
        "name": "fake", "design": "ablate", "base": names[0], "metric": "test_accuracy",
        "variants": tuple(Variant(name, {}, {"model.width": 0.5}, 1000, 10**6) for name in names),
        "cells": tuple(cells), "seeds": tuple(seeds),
    }  # fmt: skip
    return StudyResult(**(defaults | given))


def tuned():
    """Two values of the learning rate for two variants, the larger one better for the base alone."""
    means = {"base": (0.90, 0.94), "no SE": (0.93, 0.91)}
    tried = [
        Tried(name, {"optimizer.lr": lr}, {10**9 + s: value + s / 100 for s in range(2)}, 0, value == max(values))
        for name, values in means.items() for lr, value in zip((0.1, 0.2), values, strict=True)
    ]  # fmt: skip
    cells = [
        cell(f"{one.variant}, lr={one.values['optimizer.lr']}", s, {"val_accuracy": v})
        for one in tried
        for s, v in one.found.items()
    ]
    return Tuned("val_accuracy", (10**9, 10**9 + 1), tuple(tried), tuple(cells))


def shown(n=6, images=400):
    """A study with everything that a report shows: effects of any size, a failure, a divergence, older code."""
    rng = np.random.default_rng(0)
    effects = {"base": 0.0, "no SE": -0.02, "no D": -0.003, "smoothing 0.1": 0.0002, "lr 10": -0.1}
    cost = {"base": 41_000_000, "no SE": 40_000_000, "no D": 40_500_000, "smoothing 0.1": 41_000_000}
    cells = []
    for name, effect in effects.items():
        for seed in range(n):
            right = rng.random(images) < 0.95 + effect
            metrics = {"test_accuracy": right.mean(), "test_loss": 0.2 - effect + rng.normal(0, 0.01),
                       "seconds": cost.get(name, 4e7) / 1e6 + rng.normal()}  # fmt: skip
            history = tuple(
                {"epoch": e, "val_accuracy": 0.95 + effect - 0.4 * 0.6**e + rng.normal(0, 0.005), "train_loss": 1 / e}
                for e in range(1, 11)
            )
            one = cell(name, seed, metrics, weights=f"w{name}{seed}", correct=tuple(right.tolist()), history=history)
            cells.append(one)
    cells[-1] = cell("lr 10", n - 1, status="diverged", reason="the loss is nan at step 12")
    cells[-2] = cell("lr 10", n - 2, status="failed", reason="out of memory: 3.1 GB asked for, 2.0 GB free")
    variants = tuple(
        Variant(name, {}, {} if name == "base" else {"model.attention": "none"}, 270_000, cost.get(name, 4 * 10**7))
        for name in effects
    )
    return study(
        {name: [None] * n for name in effects}, name="what-SE-gives", variants=variants, cells=tuple(cells),
        also=("test_loss", "seconds", "parameters", "macs"), margin=0.01, extended=True,
        older=(cell("base", 0, 0.94, key="0ld"),), tuned=tuned(),
        about={"study": 'name = "what-SE-gives"\nseeds = 6\n\n[base]\ndata = "digits"', "torch": "2.11"},
    )  # fmt: skip
