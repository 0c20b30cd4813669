"""The network as a whole: devices, types, formats, compilation, features, head."""

import copy

import pytest
import torch
from torch import nn

from residuum import ResNetConfig, create

SMALL = {"depths": (1, 2), "widths": (8, 16), "stem_width": 8, "num_classes": 5}
VARIANTS = {
    "plain": {},
    "basic": {"block": "basic", "downsample": "pad"},
    "d": {"stem": "deep", "downsample": "avg", "attention": "se"},
    "preact": {"preact": True, "attention": "eca", "stem_pool": "conv"},
    "blur": {"antialias": "blur", "stem": "tiered", "stem_width": 16},
    "average": {"antialias": "avg", "stride_on": "1x1"},
    "group": {"norm": "group", "activation": "silu", "groups": 2, "width_per_group": 32},
    "dilated": {"output_stride": 4, "downsample": "avg"},
}


def small(**fields):
    torch.manual_seed(0)
    return create(ResNetConfig(**SMALL | fields))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_logits_have_a_row_per_image_and_a_column_per_class(name):
    assert small(**VARIANTS[name])(torch.randn(3, 3, 37, 41)).shape == (3, 5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_moves_to_another_type_by_to_alone(name, dtype):
    model = small(**VARIANTS[name]).to(dtype)
    out = model(torch.randn(2, 3, 32, 32, dtype=dtype))
    out.sum().backward()
    assert out.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_channels_last_gives_the_same_logits(name):
    model = small(**VARIANTS[name]).double().eval()
    x = torch.randn(2, 3, 33, 35, dtype=torch.float64)
    expected = model(x)
    moved = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert torch.allclose(moved(x.to(memory_format=torch.channels_last)), expected, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_trains_under_autocast(name):
    model = small(**VARIANTS[name])
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(4, 3, 32, 32))
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("plain", "batch"), *((name, "row") for name in VARIANTS)])
def test_it_compiles_to_one_graph_in_training(name, mode):
    torch._dynamo.reset()
    model = small(**VARIANTS[name], stochastic_depth=0.5, stochastic_depth_mode=mode)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_compiled_evaluation_gives_the_same_logits():
    torch._dynamo.reset()
    model = small(**VARIANTS["d"]).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_exports_with_any_batch_size(name):
    model = small(**VARIANTS[name]).eval()
    x = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    more = torch.randn(5, 3, 32, 32)
    assert torch.allclose(program.module()(more), model(more), atol=1e-6)


def test_a_deep_copy_is_equal_and_independent():
    model = small().eval()
    twin = copy.deepcopy(model)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(twin(x), model(x))
    nn.init.zeros_(twin.fc.weight)
    assert model.fc.weight.any()


def test_stages_are_module_lists_of_blocks():
    model = small()
    assert all(isinstance(stage, nn.ModuleList) for stage in model.stages)
    assert [len(stage) for stage in model.stages] == [1, 2]
    assert model.layer2 is model.stages[1]


@pytest.mark.parametrize("size", [(64, 64), (97, 113), (33, 65)])
@pytest.mark.parametrize("name", VARIANTS)
def test_features_have_the_promised_channels_and_sizes(name, size):
    model = small(**VARIANTS[name])
    features = model.features(torch.randn(2, 3, *size))
    for feature, info in zip(features, model.feature_info[1:], strict=True):
        assert feature.shape == (2, info.channels, *(-(-s // info.stride) for s in size))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_head_on_the_last_feature_is_the_forward_pass(name):
    model = small(**VARIANTS[name]).eval()
    x = torch.randn(2, 3, 40, 40)
    assert torch.equal(model.head(model.features(x)[-1]), model(x))


def test_later_stages_do_not_write_into_earlier_features():
    for fields in VARIANTS.values():
        model = small(**fields).eval()
        x = torch.randn(1, 3, 32, 32)
        first = model.features(x)[0].clone()
        one = create(model.config.replace(depths=(1,), widths=(8,), num_classes=0)).eval()
        known = {name for name, _ in one.named_parameters() if name.startswith(("conv1", "bn1", "maxpool", "layer1"))}
        known |= {name for name, _ in one.named_buffers() if not name.startswith("norm")}
        one.load_state_dict({k: v for k, v in model.state_dict().items() if k in known}, strict=False)
        assert torch.equal(one.features(x)[0], first)


def test_no_classes_gives_the_pooled_features():
    model = small(num_classes=0).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), model.features(x)[-1].mean((2, 3)))
    assert model(x).shape == (2, model.config.num_features)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = small(dropout=0.5)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_any_number_of_channels_in():
    assert small(in_channels=7)(torch.randn(2, 7, 32, 32)).shape == (2, 5)


def test_modules_hold_no_device():
    with torch.device("meta"):
        model = create(ResNetConfig(**SMALL, antialias="blur"))
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert model(torch.empty(2, 3, 32, 32, device="meta")).device.type == "meta"


def test_the_same_seed_gives_the_same_weights():
    one, two = small(), small()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
