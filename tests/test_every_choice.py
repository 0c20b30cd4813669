"""Every value of every choice in a config, through everything that has to know it: a new one fails until it does."""

from typing import Literal, get_args, get_origin

import pytest
import torch

from residuum import ResNetConfig, WeightsError, create, infer_config, load_weights, optimize_for_inference
from residuum.cost import cost
from residuum.draw import draw
from residuum.memory import MODES, Planner, Speed, recompute
from residuum.validation import declared
from residuum.weights.converting import in_layout
from residuum.weights.detection import UNSEEN
from residuum.weights.layouts import LAYOUTS
from tests.memory.test_planner import measured_peak
from tests.networks import relative, scramble

SMALL = ResNetConfig(depths=(1, 2), widths=(8, 16), stem_width=16, num_classes=5, stochastic_depth=0.2)
# What a choice needs beside it to have an effect.
BESIDE = {"antialias": {"downsample": "avg"}, "downsample": {"block": "basic", "stem_width": 8}}
SIZE = (40, 48)


def choices():
    for field in declared(ResNetConfig):
        for kind in (field.kind, *get_args(field.kind)):
            if get_origin(kind) is Literal:
                yield from ((field.name, value, preact) for value in get_args(kind) for preact in (False, True))


CHOICES = list(choices())


@pytest.fixture(params=CHOICES, ids=lambda choice: "-".join(map(str, choice)))
def config(request):
    name, value, preact = request.param
    return SMALL.replace(preact=preact, **BESIDE.get(name, {}) | {name: value})


def build(config):
    torch.manual_seed(0)
    model = create(config)
    scramble(model)
    return model


def test_no_choice_is_forgotten_here():
    assert {name for name, *_ in CHOICES} == {
        "block", "stem", "stem_pool", "downsample", "stride_on", "attention", "antialias", "norm", "activation",
        "stochastic_depth_mode",
    }  # fmt: skip


def test_its_cost_is_that_of_the_network(config):
    model = build(config)
    parts = cost(config, SIZE, 2)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert all(part.macs == sum(layer.macs for layer in part.layers) for part in parts)


@pytest.mark.slow
def test_its_peak_is_predicted_and_recomputation_changes_no_number(config):
    images, found, model = torch.randn(2, 3, *SIZE), [], build(config)
    for block in model.layer2:  # which branch a batch drops is not left to chance
        block.drop.mode = "row"
    planner = Planner(model, image_size=SIZE, optimizer="none", speed=Speed(4e11, 2e10))
    for mode in MODES:
        chosen = planner.uniform(3, mode)
        measured = measured_peak(chosen.apply(model), 3, SIZE, None)
        assert measured <= chosen.peak - planner.static <= 1.05 * measured, mode
        twin = recompute(build(config), mode)
        torch.manual_seed(1)
        twin(images).square().sum().backward()
        found.append([p.grad for p in twin.parameters()] + list(twin.buffers()))
    for values in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(values, found[0], strict=True))


def test_it_is_folded_for_inference_to_the_same_logits(config):
    model, images = build(config).eval(), torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        assert relative(optimize_for_inference(model, precision="fp32")(images), model(images)) <= 1e-5


def test_it_is_read_off_its_weights_unless_they_do_not_tell(config):
    state = build(config).state_dict()
    found = infer_config(state)
    assert {k: v.shape for k, v in create(found).state_dict().items()} == {k: v.shape for k, v in state.items()}
    for name in config.to_dict():
        if name not in UNSEEN | {"stem_pool"}:
            assert getattr(found, name) == getattr(config, name), name


def test_each_layout_brings_it_back_or_refuses_it(config):
    model, brought = build(config), 0
    for layout in LAYOUTS:
        try:
            written = in_layout(model.state_dict(), config, layout)
        except WeightsError as error:
            assert layout.partition("-")[0] in str(error)
            continue
        again = create(config)
        load_weights(again, written)
        for (name, value), expected in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(value, expected) or name.endswith("num_batches_tracked"), (layout, name)
        brought += 1
    assert brought > 0


def test_it_is_drawn_and_written_as_text(config, tmp_path):
    draw(config, tmp_path / "net.svg", name="net", figures="figures")
    assert "<svg" in (tmp_path / "net.svg").read_text(encoding="utf-8")
    assert ResNetConfig.from_toml(config.to_toml()) == config == ResNetConfig.from_json(config.to_json())
