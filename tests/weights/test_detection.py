"""Configs read off weights alone."""

import pytest
import torch

from residuum import PRESETS, ResNetConfig, WeightsError, infer_config
from residuum.weights.checkpoint import on_meta
from residuum.weights.converting import in_layout
from residuum.weights.detection import _as_seen, fitting_presets
from residuum.weights.layouts import LAYOUTS, check_layout
from residuum.weights.published import UNSEEN


def weights(config):
    return on_meta(config).state_dict()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_recognised_by_its_weights(name):
    config = _as_seen(PRESETS[name])
    found = infer_config(weights(PRESETS[name]))
    assert {f: v for f, v in found.to_dict().items() if f not in UNSEEN} == {
        f: v for f, v in config.to_dict().items() if f not in UNSEEN
    }
    names, differing = fitting_presets(found)
    assert name in names
    assert not differing


def test_the_inferred_network_takes_the_weights():
    config = ResNetConfig(
        block="bottleneck", depths=(2, 1), widths=(24, 48), stem="deep", stem_width=24, attention="se", width=0.5,
        attention_ratio=0.3, in_channels=2, num_classes=0, groups=2, width_per_group=32,
    )  # fmt: skip
    state = weights(config)
    assert {k: v.shape for k, v in weights(infer_config(state)).items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "to"), [("resnet50", "hf"), ("resnet50", "detectron2"), ("resnetv2_50d", "timm"), ("resnetv2_101", "timm")]
)
def test_other_layouts_are_read_as_well(name, to):
    state = in_layout(weights(PRESETS[name]), PRESETS[name], to)
    assert infer_config(state) == PRESETS[name]


def test_the_nearest_preset_names_what_differs():
    config = PRESETS["resnet101"].replace(attention="eca", width=0.5)
    names, differing = fitting_presets(infer_config(weights(config)))
    assert names == ["resnet101"]
    assert set(differing) == {"widths", "stem_width", "attention"}


def test_weights_of_another_architecture_are_refused():
    vgg = {f"features.{i}.weight": torch.zeros(1) for i in range(8)}
    with pytest.raises(WeightsError, match="not the weights of a residual network"):
        infer_config(vgg)


def test_weights_of_half_a_network_are_refused():
    state = {k: v for k, v in weights(PRESETS["resnet18"]).items() if not k.startswith("layer1")}
    with pytest.raises(WeightsError, match="part of a network is missing"):
        infer_config(state)


@pytest.mark.parametrize(
    ("layout", "fields", "says"),
    [
        ("torchvision", {"stem": "deep"}, "stem='deep'"),
        ("torchvision", {"width": 0.5}, "width=0.5"),
        ("hf", {"groups": 2}, "groups=2"),
        ("detectron2", {"attention": "se"}, "attention='se'"),
        ("timm", {"stem": "conv3"}, "stem='conv3'"),
        ("timm", {"stride_on": "1x1"}, "stride_on='1x1'"),
        ("timm-v2", {"preact": False}, "preact=False"),
    ],
)
def test_a_network_that_a_library_lacks_is_not_written_in_its_layout(layout, fields, says):
    with pytest.raises(WeightsError, match=says):
        check_layout(ResNetConfig(**fields), layout)


def test_every_layout_says_the_fields_that_it_allows():
    known = set(ResNetConfig().to_dict())
    for name, layout in LAYOUTS.items():
        assert layout.free <= known, name
        assert {field for field, _ in layout.barred} <= known
