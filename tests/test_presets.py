"""Presets: which there are, and what is said of one that is not."""

import pytest

from residuum import PRESETS, ConfigError, create, preset
from residuum.presets import list_presets, usual_image_size

TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


def test_the_published_families_are_there():
    names = set(PRESETS)
    assert names.issuperset(TORCHVISION)
    assert names.issuperset({f"resnet{d}d" for d in (18, 34, 50, 101, 152)})
    assert names.issuperset({f"resnetrs{d}" for d in (50, 101, 152, 200, 270, 350, 420)})
    assert names.issuperset({"seresnet50", "ecaresnet50d", "preresnet50", "cifar_preresnet110"})
    assert names.issuperset({f"cifar_resnet{d}" for d in (20, 32, 44, 56, 110)})


# He et al. (2015), table 6, in millions.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_nets_have_the_published_parameters(depth, millions):
    count = sum(p.numel() for p in create(f"cifar_resnet{depth}").parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_an_unknown_preset_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match="no preset 'resnet51'.*did you mean 'resnet50'"):
        preset("resnet51")
    with pytest.raises(ConfigError, match="no preset 'vgg'"):
        create("vgg")


def test_create_changes_fields_and_takes_a_config_too():
    model = create("resnet18", num_classes=10, width=0.25)
    assert model.config == preset("resnet18").replace(num_classes=10, width=0.25)
    assert create(model.config, num_classes=5).fc.out_features == 5
    with pytest.raises(ConfigError, match="'classes' is not a field"):
        create("resnet18", classes=10)


def test_a_run_or_weights_in_place_of_a_preset_are_led_to_what_reads_them(refused, tmp_path):
    (tmp_path / "net.safetensors").touch()
    for path in (tmp_path, tmp_path / "net.safetensors"):
        assert "is no preset; 'residuum inspect' shows" in refused("summary", path)


def test_presets_are_listed_by_pattern():
    assert list_presets() == list(PRESETS)
    found = list_presets("*resnext*_32x4d")
    assert {"resnext50_32x4d", "seresnext26t_32x4d"} <= set(found)
    assert all("resnext" in name and name.endswith("_32x4d") for name in found)
    assert list_presets("vgg*") == []


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", (224, 224)),
        ("cifar_resnet20", (32, 32)),
        ("cifar_preresnet110", (32, 32)),
        ("digits_resnet", (8, 8)),
    ],
)
def test_a_preset_knows_the_size_of_its_images(name, size):
    assert usual_image_size(name) == size
    with pytest.raises(ConfigError, match="no preset"):
        usual_image_size(f"{name}x")


def test_a_variant_is_costed_at_the_image_size_of_its_preset(command):
    shown = command("summary", "cifar_resnet20", "--in-channels", "1").out
    assert "32x32" in shown
