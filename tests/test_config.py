"""ResNetConfig: what it refuses and how it says so, what follows from its fields, in and out of text."""

import dataclasses
import pickle
import time

import pytest

from residuum import ConfigError, ResNetConfig, preset

WRONG = {
    "block": ["bottle", 3, ("basic", "bottleneck"), ("basic", "x", "basic", "basic"), (), None],
    "depths": [(), (0, 1, 1, 1), (3, 4, 6), (3, 4, 6, 3.0), "3463", 4, (True, 1, 1, 1)],
    "widths": [(), (64, -1, 8, 8), (64, 128), None],
    "groups": [0, -1, 1.0, "2", True],
    "width_per_group": [0, 0.5],
    "reduce_first": [0, 1.5, 100],
    "first_stride": [0, 3],
    "weight_standardization": [1],
    "width": [0, -1.0, 1e-300, 65, 10**400, float("nan"), float("inf"), "1", True],
    "stem": ["conv9", None],
    "stem_width": [0, "64", 64.0],
    "stem_pool": ["avg"],
    "downsample": ["none"],
    "downsample_kernel": [0, 2, 5],
    "stride_on": ["5x5"],
    "preact": [1, "yes"],
    "attention": ["cbam"],
    "attention_ratio": [0, -0.1, 1.5],
    "antialias": ["max"],
    "norm": ["layer"],
    "activation": ["sine"],
    "stochastic_depth": [1, -0.1, float("nan")],
    "stochastic_depth_mode": ["column"],
    "zero_init_residual": [0],
    "output_stride": [0, 24, -8],
    "in_channels": [0, -3],
    "num_classes": [-1, 10.0],
    "dropout": [1.0, -0.5],
}


def test_every_field_has_wrong_values_to_try():
    assert set(WRONG) == {f.name for f in dataclasses.fields(ResNetConfig)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_with_the_field_named(name, value):
    with pytest.raises(ConfigError) as caught:
        ResNetConfig(**{name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "allowed"), [("stem", "conv7, deep, tiered, conv3"), ("width", r"\[0.01, 64\]")])
def test_the_message_says_what_was_given_and_what_is_allowed(name, allowed):
    with pytest.raises(ConfigError, match=f"{name} is 'odd'.*must be|{name} is 'odd'") as caught:
        ResNetConfig(**{name: "odd"})
    assert "must be" in str(caught.value)
    if name == "stem":
        assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "both"),
    [
        ({"block": "basic", "groups": 2}, ("groups", "basic")),
        ({"block": "basic", "width_per_group": 32}, ("width_per_group", "basic")),
        ({"block": ("basic", "bottleneck", "bottleneck", "bottleneck"), "groups": 2}, ("groups", "basic")),
        ({"block": "basic", "stride_on": "1x1"}, ("stride_on", "basic")),
        ({"downsample": "avg", "downsample_kernel": 3}, ("downsample_kernel", "downsample='avg'")),
        ({"downsample": "pad", "downsample_kernel": 3}, ("downsample_kernel", "downsample='pad'")),
        ({"downsample": "pad", "widths": (64, 128, 64, 8)}, ("downsample='pad'", "256")),
        ({"output_stride": 2}, ("output_stride=2", "stem")),
        ({"depths": (1, 1), "widths": (8,)}, ("depths", "widths")),
        ({"width_per_group": 1, "widths": (8, 8, 8, 8)}, ("width_per_group=1", "width 8")),
        ({"stem": "deep", "stem_width": 33}, ("stem_width", "stem='deep'")),
        ({"stem": "tiered", "stem_width": 4}, ("stem_width", "stem='tiered'")),
    ],
)
def test_fields_that_cannot_go_together_are_both_named(fields, both):
    with pytest.raises(ConfigError) as caught:
        ResNetConfig(**fields)
    for word in both:
        assert word in str(caught.value)


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="'widht'.*did you mean 'width'"):
        ResNetConfig.from_dict({"widht": 2})
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        ResNetConfig().replace(atention="se")


def test_replace_checks_and_leaves_the_original_alone():
    config = ResNetConfig()
    assert config.replace(width=0.5) == ResNetConfig(width=0.5)
    assert config == ResNetConfig()
    with pytest.raises(ConfigError):
        config.replace(width=-1)


def test_equal_networks_are_equal_configs_and_hash_alike():
    spelled = ResNetConfig(block=["basic"] * 4, depths=[2, 2, 2, 2], width=1)
    plain = ResNetConfig(block="basic", depths=(2, 2, 2, 2), width=1.0)
    assert spelled == plain
    assert hash(spelled) == hash(plain)
    assert plain != plain.replace(dropout=0.1)
    assert len({spelled, plain}) == 1


def test_a_config_cannot_be_changed_in_place_and_survives_pickling():
    config = preset("resnext50_32x4d")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 2.0
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("name", ["resnet50", "resnetrs50", "cifar_preresnet110", "resnetblur18"])
def test_text_round_trips(name):
    config = preset(name).replace(stochastic_depth=0.1, width=0.75)
    assert ResNetConfig.from_toml(config.to_toml()) == config
    assert ResNetConfig.from_json(config.to_json()) == config


def test_a_block_per_stage_round_trips():
    config = ResNetConfig(block=("basic", "basic", "bottleneck", "basic"))
    assert ResNetConfig.from_toml(config.to_toml()).kinds == ("basic", "basic", "bottleneck", "basic")


@pytest.mark.parametrize("text", ["width = ", "[[", "width == 1", '{"width": 1'])
def test_broken_text_is_a_config_error(text):
    for read in (ResNetConfig.from_toml, ResNetConfig.from_json):
        with pytest.raises(ConfigError, match="not valid"):
            read(text)


def test_json_that_is_no_object_is_refused():
    with pytest.raises(ConfigError, match="list"):
        ResNetConfig.from_json("[1]")


def test_text_with_fields_left_out_takes_the_defaults():
    assert ResNetConfig.from_toml("width = 0.5") == ResNetConfig(width=0.5)


def test_stochastic_depth_grows_linearly_from_zero_to_the_given_rate():
    config = ResNetConfig(stochastic_depth=0.2)
    rates = [block.drop_rate for stage in config.stages for block in stage.blocks]
    assert rates == [0.2 * i / 15 for i in range(16)]
    assert rates[0] == 0.0
    assert rates[-1] == 0.2


def test_a_single_block_is_the_first_and_never_dropped():
    config = ResNetConfig(depths=(1,), widths=(64,), stochastic_depth=0.5)
    assert config.stages[0].blocks[0].drop_rate == 0.0


def test_the_width_factor_scales_stem_stages_and_head_to_multiples_of_eight():
    config = ResNetConfig(width=0.3)
    assert config.stem_channels == (24,)  # 19.2 would be 16, more than a tenth below
    assert [stage.channels // 4 for stage in config.stages] == [24, 40, 80, 152]
    assert config.num_features == 4 * 152


def test_the_width_factor_keeps_groups_whole():
    for width in (0.25, 0.4, 0.75, 1.3, 2.0):
        config = ResNetConfig(groups=32, width_per_group=4, width=width)
        for stage in config.stages:
            for block in stage.blocks:
                assert block.width % 32 == 0
                assert block.width > 0


def test_width_one_leaves_channels_alone():
    config = ResNetConfig(block="basic", widths=(10, 20, 30, 40), stem_width=10)
    assert [stage.channels for stage in config.stages] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [(32, [4, 8, 16, 32], [1, 1, 1, 1]), (16, [4, 8, 16, 16], [1, 1, 1, 2]), (8, [4, 8, 8, 8], [1, 1, 2, 4])],
)
def test_output_stride_turns_strides_into_dilation(output_stride, strides, dilations):
    stages = ResNetConfig(output_stride=output_stride).stages
    assert [stage.stride for stage in stages] == strides
    assert [stage.blocks[0].dilation for stage in stages] == dilations


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet18", 18), ("resnet50d", 50), ("resnet152", 152), ("cifar_resnet110", 110)]
)
def test_depth_counts_weighted_layers_as_the_papers_do(name, depth):
    assert preset(name).depth == depth


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"depths": (1,) * 17, "widths": (8,) * 17}, "for 1 to 16 stages"),
        ({"depths": (1,) * 10**5, "widths": (8,) * 10**5}, "for 1 to 16 stages"),
        ({"depths": (1001, 1, 1, 1)}, "depths"),
        ({"widths": (2**20,) * 4}, "give 4194304 channels"),
        ({"widths": (2**20,) * 4, "width": 64.0, "width_per_group": 2**20, "groups": 2**20}, "channels"),
        ({"stem_width": 2**20, "width": 64.0}, "channels"),
        ({"widths": (2**18,) * 4}, "weights"),
        ({"in_channels": 2**63}, "in_channels"),
        ({"num_classes": 10**5000}, "num_classes"),
    ],
)
def test_networks_beyond_any_machine_are_refused_at_once(fields, says):
    begin = time.perf_counter()
    with pytest.raises(ConfigError, match=says):
        ResNetConfig(**fields)
    assert time.perf_counter() - begin < 5


def test_the_deepest_network_is_made_of_its_fields_at_once():
    begin = time.perf_counter()
    assert sum(len(stage.blocks) for stage in ResNetConfig(depths=(1000,) * 4).stages) == 4000
    assert time.perf_counter() - begin < 5
