"""Costs: published counts, torch's own counter, and what a real step keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from residuum import PRESETS, ConfigError, ResNetConfig, create, preset
from residuum.cost import cost
from residuum.memory import plan
from residuum.presets import usual_image_size


def total(parts, name):
    return sum(getattr(part, name) for part in parts)


def test_resnet50_is_as_published():
    parts = cost(preset("resnet50"))
    assert total(parts, "parameters") == 25_557_032
    assert round(total(parts, "macs") / 1e9, 2) == 4.09
    assert [part.shape for part in parts] == [
        (1, 64, 56, 56), (1, 256, 56, 56), (1, 512, 28, 28), (1, 1024, 14, 14), (1, 2048, 7, 7), (1, 1000),
    ]  # fmt: skip
    assert [part.blocks for part in parts] == [0, 3, 4, 6, 3, 0]


# Together they have every kind of block, stem, shortcut, attention, filter and norm that a preset has.
COVERING = [
    "resnet18d", "resnext50_32x4d", "seresnext26t_32x4d", "ecaresnetlight", "resnetaa34d", "resnetblur50", "resnetrs50",
    "senet154", "test_resnet", "resnetv2_50d_gn", "resnetv2_50x1_bit", "cifar_preresnet20", "digits_resnet",
]  # fmt: skip


def test_the_networks_that_are_tried_cover_every_choice_of_the_presets():
    for field in (
        "stem", "stem_pool", "downsample", "downsample_kernel", "preact", "attention", "antialias", "norm",
        "weight_standardization", "activation",
    ):  # fmt: skip
        tried = {getattr(preset(name), field) for name in COVERING}
        assert tried == {getattr(config, field) for config in PRESETS.values()}, field
    assert {kind for name in COVERING for kind in preset(name).kinds} == {"basic", "bottleneck"}


@pytest.mark.parametrize("name", COVERING)
def test_parameters_and_macs_of_both_passes_are_those_that_torch_counts_over_the_whole_network(name):
    # Three blocks to a stage: cost runs two of them.
    config = preset(name).replace(depths=tuple(min(depth, 3) for depth in preset(name).depths))
    size = usual_image_size(name)
    with torch.device("meta"), FlopCounterMode(display=False) as forward:
        model = create(config)
        out = model(torch.empty(2, config.in_channels, *size))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    parts = cost(config, size, batch_size=2)
    assert total(parts, "parameters") == sum(p.numel() for p in model.parameters())
    assert total(parts, "macs") == forward.get_total_flops() // 2
    assert total(parts, "backward_macs") == backward.get_total_flops() // 2


@pytest.mark.parametrize("name", ["resnet50", "resnetrs101", "resnetaa50", "cifar_preresnet110"])
def test_layers_add_up_to_their_parts(name):
    config = preset(name)
    with torch.device("meta"):
        model = create(name)
    for part in cost(config, usual_image_size(name), batch_size=2):
        for figure in ("parameters", "macs", "backward_macs"):
            assert total(part.layers, figure) == getattr(part, figure), part.name
        for layer in part.layers:
            assert type(model.get_submodule(layer.name)).__name__ == layer.kind
    layers = [layer for part in cost(config, usual_image_size(name), batch_size=2) for layer in part.layers]
    assert len({layer.name for layer in layers if layer.parameters}) == sum(
        1 for m in model.modules() if not any(m.children()) and any(True for _ in m.parameters())
    )


VARIANTS = [
    {},
    {"block": "basic", "downsample": "pad"},
    {"preact": True, "attention": "se"},
    {"activation": "gelu", "attention": "eca", "antialias": "blur"},
    {"norm": "group", "stem": "deep", "downsample": "avg", "stem_pool": "conv"},
    {"dropout": 0.3, "stochastic_depth": 0.2},
]


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_a_real_step_keeps(fields, dtype):
    torch.manual_seed(0)
    config = ResNetConfig(depths=(3, 2, 4), widths=(8, 16, 24), stem_width=8, num_classes=10, **fields)
    model = create(config).to(dtype)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(3, 3, 61, 45, dtype=dtype))
    measured = sum(storage.nbytes() for storage in kept.values())
    predicted = total(cost(config, (61, 45), 3, dtype), "activation_bytes")
    if dtype == torch.float32:
        assert predicted == measured
    else:  # the statistics of a norm, two numbers a channel: float32 on CUDA and meta, bfloat16 on the CPU
        statistics = sum(2 * m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        assert 0 <= predicted - measured <= 2 * statistics


def test_images_too_small_to_train_on_are_refused():
    with pytest.raises(ConfigError, match=r"1 image\(s\) of 8x8 do not pass.*larger"):
        cost(preset("resnet50"), (8, 8))


def test_the_summary_shows_every_layer_where_asked(command):
    shown = command("summary", "cifar_resnet20", "--layers").out
    assert "layer3.2.conv2" in shown
    assert "layer3.2.conv2" not in command("summary", "cifar_resnet20").out


@pytest.mark.parametrize(
    ("image_size", "batch_size", "says"),
    [
        ((0, 224), 1, "each number must be from 1"),
        ((224, 224), 0, "each number must be from 1"),
        ((10**400, 1), 1, "each number must be from 1"),
        ((2**31 - 1, 2**31 - 1), 1, "more than 64 TiB"),
        ((224, 224), 2**31 - 1, "more than 64 TiB"),
    ],
)
def test_sizes_beyond_any_machine_are_refused_in_one_sentence(image_size, batch_size, says):
    model = create("resnet18")
    with pytest.raises(ConfigError, match=says):
        cost(model.config, image_size, batch_size)
    with pytest.raises(ConfigError, match=says):
        plan(model, batch_size, "8GB", image_size=image_size)
