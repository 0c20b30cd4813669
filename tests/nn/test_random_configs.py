"""Random configs: each is refused before any tensor exists, or builds a network that keeps every promise."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residuum import ConfigError, ResNet, ResNetConfig
from residuum import config as fields
from residuum.cost import cost

SETTINGS = settings(
    deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@st.composite
def config_fields(draw):
    """Fields of small networks, some of which cannot go together."""
    stages = draw(st.integers(1, 4))
    kind = st.sampled_from(get_args(fields.BlockKind))
    block = draw(st.one_of(kind, st.lists(kind, min_size=stages, max_size=stages).map(tuple)))
    choose = {
        name: draw(st.sampled_from(get_args(getattr(fields, literal))))
        for name, literal in {
            "stem": "Stem", "stem_pool": "StemPool", "downsample": "Downsample", "stride_on": "StrideOn",
            "attention": "Attention", "antialias": "Antialias", "norm": "Norm", "activation": "Activation",
            "stochastic_depth_mode": "DropMode",
        }.items()
    }  # fmt: skip
    # Three in four draws keep to what goes together, so that most networks are built.
    tame = draw(st.integers(0, 3)) > 0
    plain = tame and "basic" in (block if isinstance(block, tuple) else (block,))
    if plain:
        choose["stride_on"] = "3x3"
    return choose | {
        "block": block,
        "depths": tuple(draw(st.lists(st.integers(1, 2), min_size=stages, max_size=stages))),
        "widths": tuple(sorted(draw(st.lists(st.integers(4 if tame else 1, 24), min_size=stages, max_size=stages)))),
        "groups": 1 if plain else draw(st.sampled_from([1, 2, 4])),
        "width_per_group": 64 if plain else draw(st.sampled_from([64, 32, 128] if tame else [64, 4, 32, 128])),
        "width": draw(st.sampled_from([1.0, 1.0, 0.25, 0.6, 1.5])),
        "stem_width": 4 * draw(st.integers(2, 6)) if tame else draw(st.integers(1, 24)),
        "downsample_kernel": 1 if tame and choose["downsample"] != "conv" else draw(st.sampled_from([1, 3])),
        "reduce_first": draw(st.sampled_from([1, 1, 1, 2])),
        "first_stride": draw(st.sampled_from([1, 1, 2])),
        "weight_standardization": draw(st.integers(0, 3)) == 0,
        "preact": draw(st.booleans()),
        "attention_ratio": draw(st.sampled_from([1 / 16, 0.25, 1.0])),
        "stochastic_depth": draw(st.sampled_from([0.0, 0.3])),
        "zero_init_residual": draw(st.booleans()),
        "output_stride": draw(st.sampled_from([32, 16, 8, 4] if tame else [32, 8, 2])),
        "in_channels": draw(st.integers(1, 4)),
        "num_classes": draw(st.sampled_from([0, 1, 7])),
        "dropout": draw(st.sampled_from([0.0, 0.2])),
    }


@pytest.mark.slow
@settings(SETTINGS, max_examples=100)
@given(given_fields=config_fields(), size=st.tuples(st.integers(33, 47), st.integers(33, 47)))
def test_a_config_is_refused_or_its_network_keeps_every_promise(given_fields, size):
    try:
        config = ResNetConfig(**given_fields)
    except ConfigError as error:
        assert any(name in str(error) for name in given_fields), error
        return
    for text, read in ((config.to_toml(), ResNetConfig.from_toml), (config.to_json(), ResNetConfig.from_json)):
        assert read(text) == config
        assert hash(read(text)) == hash(config)

    torch.manual_seed(0)
    model = ResNet(config)
    x = torch.randn(2, config.in_channels, *size, requires_grad=True)
    out = model(x)
    out.square().sum().backward()
    assert out.shape == (2, config.num_classes or config.num_features)
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    for feature, info in zip(model.features(x), model.feature_info[1:], strict=True):
        assert feature.shape == (2, info.channels, *(math.ceil(s / info.stride) for s in size))
        assert info.stride <= config.output_stride
    assert sum(part.parameters for part in cost(config, size, batch_size=2)) == sum(
        p.numel() for p in model.parameters()
    )


@settings(SETTINGS, max_examples=30, derandomize=True)
@given(
    name=st.sampled_from(["resnet18", "resnet50", "resnext50_32x4d", "resnet26t", "preresnet50", "seresnet18"]),
    low=st.floats(0.25, 2),
    high=st.floats(0.25, 2),
)
def test_width_scales_parameters_by_its_square(name, low, high):
    def parameters(width):
        with torch.device("meta"):
            model = ResNet(fields.ResNetConfig.from_dict(base | {"width": width}))
        channels = [s.channels for s in model.config.stages] + list(model.config.stem_channels[-1:])
        assert all(c % 8 == 0 for c in channels)
        # Every convolution scales on both sides; rounding leaves each side within about a tenth.
        return sum(p.numel() for p in model.layer4.parameters() if p.ndim == 4)

    from residuum import preset

    base = preset(name).to_dict() | {"depths": (1, 1, 1, 1)}
    low, high = sorted((low, high))
    small, plain, large = parameters(low), parameters(1.0), parameters(high)
    assert small <= large
    for width, count in ((low, small), (high, large)):
        assert count / plain == pytest.approx(width**2, rel=0.25)
