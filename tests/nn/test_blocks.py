"""Blocks and their parts, each against a small computation of its own."""

import pytest
import torch
import torch.nn.functional as F

from residuum import ResNetConfig, create
from residuum.nn.layers import (
    BlurPool,
    EfficientChannelAttention,
    SqueezeExcite,
    ZeroPadShortcut,
)

SMALL = {"depths": (1, 2), "widths": (8, 16), "stem": "conv3", "stem_width": 8, "stem_pool": "none", "num_classes": 5}


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


# -- the branch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("fields", [{}, {"block": "basic"}, {"stride_on": "1x1"}])
@pytest.mark.parametrize("antialias", ["none", "blur"])
def test_a_blocks_branch_layers_are_those_that_run_in_that_order(preact, fields, antialias):
    extras = {"attention": "se", "stochastic_depth": 0.5, "stochastic_depth_mode": "row"}
    model = create("resnet50", width=0.125, depths=(1, 2, 1, 1), preact=preact, antialias=antialias, **extras, **fields)
    ran = []
    for block in model.layer2:
        ran.clear()
        for name, module in block.named_children():
            module.register_forward_hook(lambda *args, name=name: ran.append(name))
        block(torch.randn(2, next(block.conv1.parameters()).shape[1], 9, 9))
        last = [] if preact else [f"act{block.length}"]
        assert [name for name in ran if name != "downsample"] == block.branch_layers() + last


def test_a_networks_parts_run_one_after_the_other_are_the_network():
    for fields in ({}, {"preact": True, "stem": "deep"}, {"block": "basic", "stem_pool": "conv"}):
        model = create(ResNetConfig(**SMALL | {"stem_pool": "max"} | fields)).eval()
        x = y = torch.randn(2, 3, 16, 16)
        parts = model.parts()
        for part in parts:
            y = part.run(y)
        assert torch.equal(y, model(x))
        assert [part.name for part in parts] == ["stem", "layer1", "layer2", "head"]
        held = [id(p) for part in parts for layer in part.layers.values() for p in layer.parameters()]
        assert held == [id(p) for p in model.parameters()]
        assert all(model.get_submodule(name) is layer for part in parts for name, layer in part.layers.items())
        assert [len(part.blocks) for part in parts] == [0, 1, 2, 0]
