"""Processes that share chunks: norms take the statistics of all images, and the weights are those of one process."""

import operator
import signal

import numpy as np
import pytest
import torch
from tests.train.processes import in_processes, state_of
from tests.train.runs import assert_near, halted, tiny
from torch import nn

from residuum.data.catalog import scan
from residuum.errors import ConfigError
from residuum.train import Callback, Execution, fit, resume, session
from residuum.train.distributed import Team, join
from residuum.train.sync_norm import SyncBatchNorm

SMALL = {
    "epochs": 1, "batch_size": 63, "norm_batch": 21, "model.depths": (1, 1), "model.widths": (8, 16),
    "model.stochastic_depth": 0.0, "model.dropout": 0.0,
    "model.activation": "silu",  # whose slope has no step, which rounding of gradients could cross
}  # fmt: skip
WAYS = {
    "plain": {},
    "dropped branches of a chunk": {"model.stochastic_depth": 0.5, "model.stochastic_depth_mode": "batch"},
    "one chunk with all draws": {
        "norm_batch": 63, "model.stochastic_depth": 0.3, "model.dropout": 0.2, "mixing.mixup": 0.2,
        "mixing.cutmix": 1.0, "average.window": 0.2, "augment.cutout": 2,
    },
}  # fmt: skip


class Noting(Callback):
    """Notes what a run says as it begins."""

    def begin(self, beginning):
        self.lines = dict(beginning.lines)


def trained(top, ways):
    """Runs in which processes share chunks: the last epoch of each, and what it said as it began.

    One of them, otherwise plain, is within a budget that recomputes.
    """
    found = {}
    session.held_memory = lambda device: 0  # that of a test's process has nothing to do with it
    for way in ways:
        recipe, noting = tiny(**SMALL | WAYS.get(way, {})), Noting()
        execution = Execution(sync_norm=True, memory="254kB" if way == "recomputed" else None)
        found[way] = fit(recipe, out=top / way, execution=execution, callbacks=[noting]).metrics, vars(noting)
    return found


TOGETHER = pytest.mark.xdist_group("processes that share chunks")  # one worker has them all, and makes the runs once


@pytest.fixture(scope="module")
def by_world(tmp_path_factory):
    """The folder and the last epochs of runs of each way, by the number of processes."""
    found = {}
    for world, ways in ((1, WAYS), (2, (*WAYS, "recomputed")), (3, ("one chunk with all draws",))):
        top = tmp_path_factory.mktemp(f"world{world}")
        results = in_processes(world, trained, top, ways)
        assert all(isinstance(result, dict) for result in results), results
        found[world] = top, results[0]
    return found


@TOGETHER
@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "way"), [*((2, way) for way in (*WAYS, "recomputed")), (3, "one chunk with all draws")]
)
def test_processes_that_share_chunks_train_to_the_weights_of_one(by_world, world, way):
    usual = "plain" if way == "recomputed" else way
    (alone, first), (together, other) = by_world[1], by_world[world]
    assert_near(state_of(alone / usual), state_of(together / way))
    (one, _), (several, said) = first[usual], other[way]
    assert one["data_digest"] == several["data_digest"]
    assert one["train_loss"] == pytest.approx(several["train_loss"], rel=1e-5)
    count = 63 // WAYS[usual].get("norm_batch", 21)
    assert said["lines"]["chunks"] == f"{count} a step, of {63 // count} images each, shared by {world} processes"
    assert ("recomputed" in said["lines"].get("memory", "")) == (way == "recomputed")


def resumed(folder):
    return resume(folder, execution=Execution(sync_norm=True), callbacks=[])


@TOGETHER
@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two_that_share_its_only_chunk(by_world, tmp_path):
    [stopped] = in_processes(1, halted, tiny(**SMALL | WAYS["one chunk with all draws"]), tmp_path / "cut", 7)
    assert stopped.stopped_by == signal.SIGTERM
    assert all(len(result.history) == 1 for result in in_processes(2, resumed, tmp_path / "cut"))
    assert_near(state_of(by_world[1][0] / "one chunk with all draws"), state_of(tmp_path / "cut"))


def normalised(dtype):
    """A norm's output, gradients and running statistics of this process's part of eight images."""
    team = join(60.0)
    x, gradient = (torch.randn(8, 5, 3, 2, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    x, gradient = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x * 3 + 7, gradient))
    norm = nn.BatchNorm2d(5, momentum=None)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(5) - 1.5)
        norm.bias.copy_(torch.arange(5))
    part = slice(None)
    if team.world > 1:
        norm.__class__, part = SyncBatchNorm, [slice(0, 1), slice(1, 8)][team.rank]
    x = x[part].requires_grad_()
    out = norm(x)
    out.backward(gradient[part])
    again = norm.eval()(x.detach())
    found = out, x.grad, again, norm.running_mean, norm.running_var, norm.weight.grad
    return [(str(t.dtype), t.detach().double().numpy()) for t in found]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unlike_parts_are_normalised_as_torch_normalises_the_whole(dtype):
    [whole] = in_processes(1, normalised, dtype)
    parts = in_processes(2, normalised, dtype)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
    joined = [np.concatenate] * 3 + [operator.itemgetter(0)] * 2 + [sum]  # what the parts of each come to together
    for (kind, expected), (of, one), (_, two), together in zip(whole, *parts, joined, strict=True):
        assert of == kind
        np.testing.assert_allclose(together([one, two]), expected, **near)
    for place in (3, 4):
        np.testing.assert_array_equal(parts[0][place][1], parts[1][place][1])


def test_compiled_steps_do_not_share_chunks(monkeypatch):
    monkeypatch.setattr("residuum.train.session.need_compiler", lambda device: None)
    together = {"execution": Execution(sync_norm=True), "device": torch.device("cpu"), "team": Team(0, 2)}
    with pytest.raises(ConfigError, match="leave out --sync-norm or --compile"):
        session.prepare(tiny(compile=True, **SMALL), catalog=scan("digits"), callbacks=(), **together)
