"""What people's tools do to a network: tracing, hooks, functional calls, meta tensors, new classifiers, resets."""

import copy
import warnings

import pytest
import timm
import torch
from tests.nn.test_resnet import VARIANTS, small
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrize, prune
from torchvision.models.feature_extraction import create_feature_extractor

from residuum import ConfigError, create
from residuum.memory import set_in_place

IMAGES = torch.randn(2, 3, 33, 37, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VARIANTS)
def test_fx_traces_the_network_and_the_trace_computes_the_same(name):
    model = small(**VARIANTS[name], stochastic_depth=0.5).eval()
    assert torch.equal(torch.fx.symbolic_trace(model)(IMAGES), model(IMAGES))


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_a_trace_in_training_draws_anew_in_each_pass(mode):
    model = small(stochastic_depth=0.5, stochastic_depth_mode=mode, norm="group", zero_init_residual=False)
    traced = torch.fx.symbolic_trace(model.train())
    assert len({traced(IMAGES).sum().item() for _ in range(20)}) > 1


def test_torchvisions_feature_extractor_takes_any_level():
    model = create("resnetblur50d", width=0.125, num_classes=2).eval()
    extract = create_feature_extractor(model, [info.name for info in model.feature_info])
    with torch.inference_mode():
        maps = extract(IMAGES)
        for info, feature in zip(model.feature_info, model.features(IMAGES, range(5)), strict=True):
            assert torch.equal(maps[info.name], feature)
            assert feature.shape == (2, info.channels, -(-33 // info.stride), -(-37 // info.stride))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "seresnet18", "resnetblur18", "preresnet50"])
def test_quantisation_by_fx_prepares_and_converts(name):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    model = create(name, width=0.25, num_classes=10).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (IMAGES,))
        prepared(IMAGES)
        quantised = convert_fx(prepared)
    expected = model(IMAGES)
    assert (quantised(IMAGES) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet18", "resnetblur18"])
def test_vmap_runs_an_ensemble_at_once(name):
    models = [create(name, width=0.125, num_classes=4).eval() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0])
    out = vmap(lambda p, b: functional_call(base, (p, b), (IMAGES,)))(parameters, buffers)
    for got, model in zip(out, models, strict=True):
        assert torch.allclose(got, model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_without_in_place_work_every_module_takes_a_full_backward_hook_and_numbers_stay(name):
    plain, model = small(**VARIANTS[name]), small(**VARIANTS[name])
    for module in model.modules():  # the usual remedy
        if hasattr(module, "inplace"):
            module.inplace = False
    seen = set()
    for module_name, module in model.named_modules():
        if any(p is not None for p in module.parameters(recurse=False)):
            module.register_full_backward_hook(lambda *args, name=module_name: seen.add(name))
    for net in (plain, model):
        net(IMAGES.clone().requires_grad_()).square().sum().backward()
    for (key, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    assert seen == {n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}


def test_without_in_place_work_no_layer_writes_over_its_input():
    model = small(activation="silu", attention="se")
    set_in_place(model, False)
    before = {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name: before.update({name: args[0].clone()}))
        module.register_forward_hook(
            lambda m, args, out, name=name: pytest.fail(name) if not torch.equal(before[name], args[0]) else None
        )
    model(IMAGES)


@pytest.mark.parametrize("assign", [False, True])
def test_a_network_from_the_meta_device_is_right_once_weights_are_loaded(assign):
    reference = create("resnetblur18", width=0.125).eval()
    with torch.device("meta"):
        model = create("resnetblur18", width=0.125)
    if not assign:
        model.to_empty(device="cpu")
        model.layer2[0].aa.filter.fill_(9)
    model.load_state_dict(reference.state_dict(), assign=assign)
    assert torch.equal(model.eval()(IMAGES), reference(IMAGES))
    assert model.to("cpu").half().layer2[0].aa.filter.dtype == torch.float16


def test_a_classifier_is_replaced_as_on_torchvisions_networks():
    model = small()
    model.fc = nn.Linear(model.fc.in_features, 7)
    assert model(IMAGES).shape == (2, 7)


@pytest.mark.parametrize("classes", [0, 7])
def test_reset_classifier_keeps_all_but_the_classifier(classes):
    model = small().double().eval()
    model.classes = tuple("abcde")
    kept = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("fc")}
    model.reset_classifier(classes)
    assert model.config.num_classes == classes
    assert model.classes is None
    assert model(IMAGES.double()).shape == (2, classes or model.num_features)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in kept.items())


@pytest.mark.parametrize("name", ["resnet26d", "resnetv2_18"])
def test_features_and_head_are_timms(name):
    torch.manual_seed(0)
    peer = timm.create_model(name, num_classes=10).eval()
    ours = create(name, num_classes=10).eval()
    from residuum import load_weights

    load_weights(ours, peer.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features = ours.forward_features(x)
        assert torch.allclose(features, peer.forward_features(x), rtol=1e-4, atol=1e-4)
        pooled = ours.forward_head(features, pre_logits=True)
        assert torch.allclose(pooled, peer.forward_head(features, pre_logits=True), rtol=1e-4, atol=1e-4)
        assert pooled.shape == (1, ours.num_features) == (1, peer.num_features)
        assert torch.equal(ours.forward_head(features), ours(x))
        assert torch.equal(ours.fc(pooled), ours(x))


@pytest.mark.parametrize("levels", [[0], [0, 2], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("name", ["plain", "preact", "d"])
def test_chosen_levels_are_those_of_all_levels(name, levels):
    model = small(**VARIANTS[name]).eval()
    every = model.features(IMAGES, [0, 1, 2])
    assert len(every) == len(model.feature_info)
    chosen = model.features(IMAGES, levels)
    assert all(torch.equal(got, every[level]) for got, level in zip(chosen, levels, strict=True))
    assert [m.shape[1] for m in chosen] == [model.feature_info[level].channels for level in levels]


def test_what_comes_after_the_last_level_is_not_run():
    model, calls = small(), []
    model.layer2.register_forward_hook(lambda *args: calls.append(1))
    model.features(IMAGES, [0, 1])
    assert not calls


@pytest.mark.parametrize("levels", [[], [3], [-1], [1, 1], [2, 1]])
def test_levels_that_are_not_there_are_refused(levels):
    with pytest.raises(ConfigError, match="rising numbers from 0 to 2"):
        small().features(IMAGES, levels)


RESETS = [*VARIANTS.values(), {"weight_standardization": True, "norm": "group", "preact": True}, {"num_classes": 0}]


@pytest.mark.parametrize("fields", RESETS)
def test_a_reset_network_is_a_new_one_of_the_same_seed(fields):
    new, model = small(**fields), small(**fields)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(3)
    torch.manual_seed(0)
    model.reset_parameters()
    for (name, value), expected in zip(model.named_parameters(), new.parameters(), strict=True):
        assert torch.equal(value, expected), name
    for (name, value), expected in zip(model.named_buffers(), new.buffers(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("put", [prune.l1_unstructured, parametrize.register_parametrization])
def test_what_cannot_be_reset_is_refused(put):
    model = small()
    put(model.layer1[0].conv1, "weight", nn.Identity() if put is parametrize.register_parametrization else 0.5)
    with pytest.raises(ConfigError, match="parametrised or pruned"):
        model.reset_parameters()
