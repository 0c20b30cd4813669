"""Stochastic depth: what is dropped, how survivors are scaled, and what the draws are a function of."""

import copy
import math
import os

import pytest
import torch
from tests.nn.test_blocks import SMALL
from tests.train.processes import PerRank, in_processes
from torch import nn

from residuum import ResNetConfig, create
from residuum.nn.stochastic_depth import StochasticDepth, seed_stochastic_depth

DROP = SMALL | {"stochastic_depth": 0.5}


def last_block(**fields):
    """The block that is dropped most often, with weights that make its branch count."""
    torch.manual_seed(0)
    block = create(ResNetConfig(**DROP | {"zero_init_residual": False} | fields)).layer2[-1]
    assert block.drop.rate == 0.5
    return block


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_the_mean_over_passes_is_the_plain_branch(mode):
    torch.manual_seed(0)
    drop, rate, passes = StochasticDepth(0.4, mode), 0.4, 4000
    branch = torch.rand(8, 3, 2, 2) + 1
    total = torch.zeros_like(branch)
    for _ in range(passes):
        if not drop.skips(branch):
            total += drop(branch)
    samples = passes * (8 if mode == "row" else 1)
    ratio = (total / passes / branch).mean().item()  # 1, and 0.6 were survivors not scaled by 1 / 0.6
    error = math.sqrt(rate / (1 - rate) / samples)
    assert abs(ratio - 1) < 5 * error
    assert 5 * error < 0.4, "the tolerance must be able to tell 1 from 0.6"


def test_row_mode_decides_for_each_sample_alone():
    torch.manual_seed(0)
    out = StochasticDepth(0.5, "row")(torch.ones(1000, 2, 3, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all(), "a sample is dropped whole or not at all"
    assert set(per_sample[:, 0].tolist()) == {0.0, 2.0}
    assert 400 < (per_sample[:, 0] == 0).sum() < 600


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_only_the_branch_is_dropped_never_the_shortcut(mode):
    block = last_block(stochastic_depth_mode=mode)
    x = torch.rand(64, block.conv1.in_channels, 4, 4)
    kept = dropped = 0
    for _ in range(20):
        out = block(x)
        same = (out == x).flatten(1).all(1)  # x is positive, so the last activation leaves it alone
        dropped += int(same.sum())
        kept += int((~same).sum())
    assert kept > 0
    assert dropped > 0


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_evaluation_is_deterministic_and_equal_to_rate_zero(mode):
    config = ResNetConfig(**DROP, stochastic_depth_mode=mode)
    model, plain = create(config).eval(), create(config, stochastic_depth=0.0).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("preact", [False, True])
def test_batch_mode_skips_the_work_and_leaves_zero_gradients(preact):
    block = last_block(stochastic_depth_mode="batch", preact=preact)
    calls = []
    block.conv1.register_forward_hook(lambda *_: calls.append(1))
    passes = 200
    skipped = 0
    for _ in range(passes):
        before = len(calls)
        block.zero_grad(set_to_none=True)
        x = torch.rand(2, block.conv1.in_channels, 4, 4, requires_grad=True)
        block(x).sum().backward()
        gradients = [p.grad for name, p in block.named_parameters() if name.startswith("conv")]
        assert all(g is not None for g in gradients), "a skipped block's parameters get zeros, not nothing"
        if len(calls) == before:
            skipped += 1
            assert all((g == 0).all() for g in gradients)
            assert (x.grad == 1).all()
    assert len(calls) == passes - skipped
    assert 60 < skipped < 140


def test_batch_mode_does_not_touch_the_statistics_of_a_skipped_branch():
    block = last_block(stochastic_depth_mode="batch")
    x = torch.rand(4, block.conv1.in_channels, 4, 4)
    seen = 0
    while not block.drop.skips(x) or seen == 0:
        block(x)
        seen = int(block.bn1.num_batches_tracked)
    passes = 30
    before = seen
    for _ in range(passes):
        block(x)
    assert before < int(block.bn1.num_batches_tracked) < before + passes


def test_skipping_passes_gradients_to_the_shortcut():
    torch.manual_seed(0)
    model = create(ResNetConfig(**DROP | {"stochastic_depth": 0.99}, stochastic_depth_mode="batch"))
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


def draws(model, steps, *, shared=lambda step: step, own=lambda step: step):
    """What is kept of each sample in each block, step by step."""
    kept, found = [], []
    for block in (b for stage in model.stages for b in stage if b.drop is not None):
        block.conv1.register_forward_hook(lambda module, args, out: kept.append(id(module)))
        block.drop.register_forward_hook(lambda module, args, out: kept.append((out != 0).flatten(1).any(1).tolist()))
    names = {id(m): name for name, m in model.named_modules()}
    for step in range(steps):
        kept.clear()
        seed_stochastic_depth(model, shared(step), own(step))
        model(torch.ones(8, 3, 8, 8))
        found.append([names.get(entry, entry) if isinstance(entry, int) else entry for entry in kept])
    return found


def dropping(mode, rate=0.5):
    torch.manual_seed(0)
    fields = DROP | {"depths": (3, 3), "stochastic_depth": rate, "zero_init_residual": False}
    return create(ResNetConfig(**fields, stochastic_depth_mode=mode))


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_draws_are_a_function_of_the_seeds_and_of_nothing_else(mode):
    model = dropping(mode)
    first = draws(copy.deepcopy(model), 6)
    torch.rand(1000)
    twin = copy.deepcopy(model)
    seed_stochastic_depth(twin, 7, 7)
    twin(torch.ones(3, 3, 8, 8))
    assert draws(twin, 6) == first
    assert len({str(step) for step in first}) > 1


def test_whole_batches_follow_the_shared_seed_and_single_samples_their_own():
    for mode, follows in (("batch", "shared"), ("row", "own")):
        model = dropping(mode)
        plain = draws(copy.deepcopy(model), 5)
        for changed in ("shared", "own"):
            same = draws(copy.deepcopy(model), 5, **{changed: lambda step: step + 100}) == plain
            assert same == (changed != follows), (mode, changed)


def test_seeded_draws_leave_torchs_generator_alone_and_drop_at_the_rate():
    for mode in ("row", "batch"):
        drop, branch = StochasticDepth(0.3, mode), torch.ones(50, 1, 1, 1)
        state, dropped = torch.get_rng_state(), 0.0
        for step in range(400):
            seed_stochastic_depth(drop, step, step)
            dropped += 1.0 if drop.skips(branch) else (drop(branch) == 0).float().mean().item()
        assert torch.equal(torch.get_rng_state(), state)
        assert abs(dropped / 400 - 0.3) < 5 * math.sqrt(0.21 / (400 * (50 if mode == "row" else 1)))


def test_passes_of_one_step_and_blocks_of_one_pass_draw_anew():
    model = dropping("row")
    seed_stochastic_depth(model, 1, 1)
    model.eval()
    drops = [m.train() for m in model.modules() if isinstance(m, StochasticDepth)]
    drops = [d for d in drops if d.rate == 0.5] + [StochasticDepth(0.5, "row")]
    seed_stochastic_depth(nn.ModuleList(drops), 1, 1)
    branch = torch.ones(64, 1, 1, 1)
    outs = [str(d(branch).flatten().tolist()) for d in drops for _ in range(3)]
    assert len(set(outs)) == len(outs)


def _choices(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # different on purpose
    model = create(ResNetConfig(**DROP, stochastic_depth_mode="batch"))
    wrapped = nn.parallel.DistributedDataParallel(model)
    calls = []
    for block in (b for stage in model.stages for b in stage):
        block.conv1.register_forward_hook(lambda module, *_: calls.append(id(module)))
    chosen = []
    for step in range(12):
        seed_stochastic_depth(wrapped, step, 100 * rank + step)
        calls.clear()
        wrapped.zero_grad()
        wrapped(torch.randn(2, 3, 8, 8)).sum().backward()
        chosen.append(len(calls))
    torch.save((chosen, [p.grad for p in model.parameters()]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    return rank


@pytest.mark.slow
def test_all_ranks_of_a_distributed_job_make_the_same_choice(tmp_path):
    assert in_processes(2, _choices, PerRank((0, 1)), os.fspath(tmp_path)) == [0, 1]
    (first, gradients), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert len(set(first)) > 1, "some passes skip, some do not"
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
