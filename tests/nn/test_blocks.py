"""Blocks and their parts, each against a small computation of its own."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from residuum import ResNetConfig, create
from residuum.nn.blocks import (
    BlurPool,
    EfficientChannelAttention,
    SqueezeExcite,
    ZeroPadShortcut,
)
from residuum.nn.stochastic_depth import StochasticDepth

SMALL = {"depths": (1, 2), "widths": (8, 16), "stem": "conv3", "stem_width": 8, "stem_pool": "none", "num_classes": 5}
DROP = SMALL | {"stochastic_depth": 0.5}


def last_block(**fields):
    """The block that is dropped most often, with weights that make its branch count."""
    torch.manual_seed(0)
    block = create(ResNetConfig(**DROP | {"zero_init_residual": False} | fields)).layer2[-1]
    assert block.drop.rate == 0.5
    return block


# -- stochastic depth ----------------------------------------------------------------------------------------------


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


def _choices(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # different on purpose
    model = create(ResNetConfig(**DROP, stochastic_depth_mode="batch"))
    wrapped = nn.parallel.DistributedDataParallel(model)
    calls = []
    for block in (b for stage in model.stages for b in stage):
        block.conv1.register_forward_hook(lambda module, *_: calls.append(id(module)))
    chosen = []
    for _ in range(12):
        calls.clear()
        wrapped.zero_grad()
        wrapped(torch.randn(2, 3, 8, 8)).sum().backward()
        chosen.append(len(calls))
    torch.save((chosen, [p.grad for p in model.parameters()]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_of_a_distributed_job_make_the_same_choice(tmp_path):
    torch.multiprocessing.spawn(_choices, (os.fspath(tmp_path),), nprocs=2)
    (first, gradients), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert len(set(first)) > 1, "some passes skip, some do not"
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


# -- shortcuts -----------------------------------------------------------------------------------------------------


def test_option_a_subsamples_and_pads_with_zeros_on_both_sides():
    plan = (
        ResNetConfig(block="basic", depths=(1, 1), widths=(8, 14), stem_width=8, downsample="pad").stages[1].blocks[0]
    )
    x = torch.randn(2, 8, 7, 9)
    out = ZeroPadShortcut(plan)(x)
    assert out.shape == (2, 14, 4, 5)
    assert torch.equal(out[:, 3:11], x[:, :, ::2, ::2])
    assert not out[:, :3].any()
    assert not out[:, 11:].any()


def test_option_a_has_no_parameters():
    model = create("cifar_resnet20")
    assert not [name for name, _ in model.named_parameters() if "downsample" in name]
    assert any(name.endswith("downsample") for name, _ in model.named_modules())


def test_the_averaged_shortcut_does_not_count_what_lies_outside():
    block = create("resnet18d", width=0.25, num_classes=2).layer2[0]
    pool = block.downsample[0]
    assert torch.equal(pool(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 3, 3))
    assert block.downsample[1].stride == (1, 1)


def test_a_stride_in_the_first_1x1_is_caffes():
    v1, v15 = (create("resnet50", width=0.25, stride_on=where).layer2[0] for where in ("1x1", "3x3"))
    assert (v1.conv1.stride, v1.conv2.stride) == ((2, 2), (1, 1))
    assert (v15.conv1.stride, v15.conv2.stride) == ((1, 1), (2, 2))


def test_senets_3x3_shortcut():
    stage1, stage2 = create("resnet50", width=0.25, downsample_kernel=3).stages[:2]
    assert stage1[0].downsample[0].kernel_size == (1, 1), "where nothing strides, a 1x1 is enough (timm)"
    assert stage2[0].downsample[0].kernel_size == (3, 3)


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "ratio", "reduced"), [(64, 1 / 16, 8), (256, 1 / 16, 16), (2048, 1 / 4, 512)])
def test_squeeze_and_excitation_rounds_its_width_to_eight(channels, ratio, reduced):
    assert SqueezeExcite(channels, ratio).fc1.out_channels == reduced


def test_squeeze_and_excitation_is_its_formula():
    torch.manual_seed(0)
    se, x = SqueezeExcite(16, 1 / 16), torch.randn(2, 16, 5, 3)
    w1, w2 = se.fc1.weight[:, :, 0, 0], se.fc2.weight[:, :, 0, 0]
    gate = torch.sigmoid(F.relu(x.mean((2, 3)) @ w1.T + se.fc1.bias) @ w2.T + se.fc2.bias)
    assert torch.allclose(se(x), x * gate[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize(("channels", "kernel"), [(16, 3), (64, 3), (256, 5), (512, 5), (2048, 7)])
def test_channel_attention_takes_its_kernel_from_the_channels(channels, kernel):
    # Odd number nearest to (log2(C) + 1) / 2, as the authors' code rounds it (1910.03151, section 3.3).
    assert EfficientChannelAttention(channels).conv.kernel_size == (kernel,)


@pytest.mark.parametrize("stride", [1, 2])
def test_blur_is_the_binomial_filter(stride):
    x = torch.randn(2, 3, 6, 7)
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    expected = torch.zeros(2, 3, 6, 7)
    for dy in range(3):
        for dx in range(3):
            expected += row[dy] * row[dx] * padded[:, :, dy : dy + 6, dx : dx + 7]
    assert torch.allclose(BlurPool(stride)(x), expected[:, :, ::stride, ::stride], atol=1e-6)


def test_blur_keeps_a_constant_image_even_of_one_pixel():
    for size in ((1, 1), (1, 5), (2, 2), (5, 5)):
        x = torch.full((1, 2, *size), 3.0)
        assert torch.allclose(BlurPool(2)(x), torch.tensor(3.0))


def test_the_filter_follows_the_activation_of_the_convolution_that_would_have_strided():
    for fields, index in (({}, 2), ({"stride_on": "1x1"}, 1), ({"block": "basic"}, 1)):
        block = create("resnet50", width=0.25, antialias="blur", **fields).layer2[0]
        strides = [getattr(block, f"conv{i}").stride for i in range(1, block.length + 1)]
        assert set(strides) == {(1, 1)}
        assert block.filter_after == index


def test_group_norm_has_32_groups_or_the_most_that_divide():
    model = create("resnet50", norm="group")
    assert model.bn1.num_groups == 32
    assert create("resnet50", norm="group", stem_width=40).bn1.num_groups == 8


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_branches_start_at_zero_and_still_learn(block, preact):
    torch.manual_seed(0)
    model = create(ResNetConfig(**SMALL, block=block, preact=preact))
    unit = model.layer2[1]
    x = torch.rand(2, unit.conv1.in_channels, 6, 6)
    assert torch.equal(unit(x), x), "a positive input passes unchanged"
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    last = getattr(unit, f"{'conv' if preact else 'bn'}{unit.length}")
    assert last.weight.grad.abs().sum() > 0


def test_without_zero_init_branches_start_at_work():
    unit = create(ResNetConfig(**SMALL, zero_init_residual=False)).layer2[1]
    x = torch.rand(2, unit.conv1.in_channels, 6, 6)
    assert not torch.equal(unit(x), x)


def test_preactivation_is_its_formula():
    torch.manual_seed(0)
    first, second = create(ResNetConfig(**SMALL, preact=True, block="basic", zero_init_residual=False)).eval().layer2
    x = torch.randn(2, 8, 6, 6)
    h = F.relu(first.bn1(x))
    branch = first.conv2(F.relu(first.bn2(first.conv1(h))))
    y = first.downsample(h) + branch  # the shortcut that projects takes the activated input
    assert torch.allclose(first(x), y, atol=1e-6)
    branch = second.conv2(F.relu(second.bn2(second.conv1(F.relu(second.bn1(y))))))
    assert torch.allclose(second(y), y + branch, atol=1e-6)  # the identity takes the raw one
