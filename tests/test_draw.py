"""The drawing: what it shows of a network, and how it is read."""

import dataclasses
import re
from typing import Literal, get_args, get_origin, get_type_hints
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from residuum import ResiduumError, ResNetConfig, preset
from residuum.draw import check_drawable, draw, traits

SVG = "{http://www.w3.org/2000/svg}"
STEM_AND_HEAD = 4  # 7x7, max pool; average pool, classifier


def drawn(tmp_path, config, **words):
    path = tmp_path / "net.svg"
    draw(config, path, **{"name": "net", "figures": "figures"} | words)
    return ET.fromstring(path.read_text(encoding="utf-8"))


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def paths(root, style):
    return [p for p in root.iter(f"{SVG}path") if style in p.get("style", "")]


def literals():
    for name, hint in get_type_hints(ResNetConfig).items():
        for kind in (hint, *get_args(hint)):
            if get_origin(kind) is Literal:
                yield from ((name, value) for value in get_args(kind))


CHANGES = [{name: value} for name, value in literals()]
CHANGES += [
    {"preact": True}, {"groups": 32}, {"width_per_group": 128}, {"reduce_first": 2}, {"output_stride": 4},
    {"weight_standardization": True}, {"downsample_kernel": 3}, {"first_stride": 2}, {"stochastic_depth": 0.1},
    {"dropout": 0.5}, {"num_classes": 0}, {"in_channels": 1}, {"width": 0.5}, {"stem_width": 32},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_no_variant_looks_like_the_network_it_varies(tmp_path, change):
    usual = ResNetConfig(depths=(1, 1), widths=(64, 128), stochastic_depth=0.05)
    varied = usual.replace(**change)

    def picture(config):
        draw(config, tmp_path / "net.svg", name="net", figures="")
        return (tmp_path / "net.svg").read_text(encoding="utf-8")

    assert (picture(varied) == picture(usual)) == (varied == usual)


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "senet154", "cifar_preresnet20", "test_resnet", "resnetrs420"])
def test_networks_of_every_family_can_be_drawn(tmp_path, name):
    root = drawn(tmp_path, preset(name), name=name)
    stages = len(preset(name).depths)
    assert [t for t in texts(root) if t.startswith("layer")] == [f"layer{i}" for i in range(1, stages + 1)]


def test_every_convolution_is_a_bar_and_every_shortcut_an_arc(tmp_path):
    root = drawn(tmp_path, ResNetConfig(depths=(2, 3), widths=(64, 128)))
    dark, light = "#0d9488", "#2563eb"
    assert len(paths(root, f"fill: {dark}")) == 2 + 1  # a 3x3 each, and the legend's
    assert len(paths(root, f"fill: {light}")) == 3
    assert len(paths(root, "stroke: #94a3b8")) == 1 + 2 + 1
    assert len(paths(root, "stroke: #ea580c")) == 1 + 1 + 1


def test_the_first_convolution_of_a_branch_is_as_thin_as_it_has_channels(tmp_path):
    def first_bar(config):
        root = drawn(tmp_path, config)
        bars = [p for p in root.iter(f"{SVG}path") if "M" in p.get("d") and "fill: #9fd3d0" in p.get("style", "")]
        xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", bars[0].get("d"))]
        return max(xs) - min(xs)

    usual = ResNetConfig(depths=(1,), widths=(64,))
    assert first_bar(usual.replace(reduce_first=8)) < 0.75 * first_bar(usual)


@pytest.mark.slow
def test_the_legend_explains_only_what_occurs(tmp_path):
    plain = texts(drawn(tmp_path, preset("resnet18")))
    assert "squeeze-and-excitation" not in plain
    assert "1x1 convolution" not in plain
    rich = texts(drawn(tmp_path, preset("seresnextaa101d_32x8d")))
    for words in ("squeeze-and-excitation", "3x3 convolution in 32 groups", "average filter that subsamples"):
        assert words in rich
    assert "shortcut that changes the shape: average pool, then 1x1 convolution" in rich


def test_words_say_what_has_no_mark():
    assert traits(preset("resnet50")) == []
    assert traits(preset("resnetv2_50x1_bit")) == ["pre-activation blocks", "group norm", "standardised weights"]
    assert traits(preset("resnet50").replace(output_stride=8)) == ["dilation up to 4 in place of strides"]


def test_the_svg_has_a_title_a_description_and_text(tmp_path):
    root = drawn(tmp_path, preset("seresnet18"), name="se<18>", figures="11,000 parameters")
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "se<18>"
    assert "depth 18" in root.find(f"{SVG}desc").text
    assert "squeeze-and-excitation" in root.find(f"{SVG}desc").text
    assert {"se<18>", "11,000 parameters", "layer4", "2 basic blocks"} <= set(texts(root))


def test_every_colour_has_one_for_dark_pages(tmp_path):
    root = drawn(tmp_path, preset("resnetv2_50d").replace(attention="se", antialias="blur", groups=32, output_stride=8))
    style = root.find(f"{SVG}style").text
    assert "prefers-color-scheme: dark" in style
    used = {c for e in root.iter() for c in re.findall(r"(?:fill|stroke): #\w+", e.get("style", ""))}
    assert len(used) > 10
    assert all(f'[style*="{colour}"]' in style for colour in used)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for ending in ("svg", "png"):
        one, two = tmp_path / f"1.{ending}", tmp_path / f"2.{ending}"
        for path in (one, two):
            draw(preset("seresnet18"), path, name="x", figures="y")
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_a_deep_network_stays_on_one_narrow_page(tmp_path):
    draw(ResNetConfig(depths=(1000, 2, 3, 300)), tmp_path / "deep.png", name="deep", figures="")
    with Image.open(tmp_path / "deep.png") as image:
        assert image.width == 960
        assert image.height < 6000
    assert "and 880 more blocks" in texts(drawn(tmp_path, ResNetConfig(depths=(1000, 2, 3, 300))))


@pytest.mark.parametrize("name", ["$x^$", "[red]", "a\x00\x1b[31m\udcff", "日本", "n" * 9000])
def test_any_name_can_stand_on_a_drawing(tmp_path, name):
    assert drawn(tmp_path, preset("cifar_resnet20"), name=name) is not None
    draw(preset("cifar_resnet20"), tmp_path / "net.png", name=name, figures=name)


@pytest.mark.parametrize("path", ["net.pdf", "net", "no/such/net.svg", "x" * 5000 + "/net.svg", "a\x00b/net.svg"])
def test_a_file_that_cannot_be_drawn_is_refused_before_anything_is_computed(tmp_path, path):
    with pytest.raises(ResiduumError):
        check_drawable(tmp_path / path)


def test_fields_of_training_alone_are_the_only_ones_that_no_drawing_shows():
    shown = {name for change in CHANGES for name in change} | {"depths", "widths", "attention_ratio"}
    assert {f.name for f in dataclasses.fields(ResNetConfig)} - shown == {"zero_init_residual"}
