"""Studies without training: a function of variant and seed gives the metrics."""

from residuum.ablate.results import CellResult, StudyResult, Variant


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
