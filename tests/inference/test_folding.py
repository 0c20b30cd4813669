"""Networks for inference: the same answers as the network they were made from, and refusals."""

import copy

import pytest
import torch
from PIL import Image
from tests.networks import relative, scramble
from torch import nn

import residuum.inference.optimize
from residuum import PRESETS, ConfigError, ResiduumError, create, freeze, load, optimize_for_inference
from residuum.devices import choose_precision
from residuum.errors import DataError, DeviceError
from residuum.inference.folding import FoldedConv
from residuum.inference.onednn import SHAPES_KEPT, FusedConv, onednn_fuses, wide_enough
from residuum.inference.predict import predict

TOLERANCE = {"fp32": 1e-5, "bf16": 0.03}  # as the docstring of optimize_for_inference states
SMALL = {"depths": (2, 1), "widths": (16, 24), "stem_width": 16, "num_classes": 10}


def network(config="resnet50", **changes):
    """A network in evaluation whose weights and statistics are as after training."""
    torch.manual_seed(0)
    model = create(config, **changes)
    scramble(model)
    return model.eval()


def plainly(model, images):
    with torch.no_grad():
        return model(images)


def check(model, images, precision="fp32"):
    """The optimized network's logits are within the tolerance, and its top-1 the same.

    Random networks have near ties, which bf16 may decide the other way; trained ones are looked at below.
    """
    expected = plainly(model, images)
    got = optimize_for_inference(model, precision=precision)(images)
    assert got.dtype == torch.float32
    assert relative(got, expected) < TOLERANCE[precision], model.config
    assert precision != "fp32" or torch.equal(got.argmax(1), expected.argmax(1)), model.config


def shallow(config):
    """A preset with at most two blocks a stage and half the width."""
    return config.replace(depths=tuple(min(d, 2) for d in config.depths), width=0.5, num_classes=20)


@pytest.mark.slow
def test_every_preset_stays_within_the_tolerance():
    for config in dict.fromkeys(shallow(config) for config in PRESETS.values()):
        model, images = network(config), torch.randn(2, config.in_channels, 33, 47)
        for precision in TOLERANCE:
            check(model, images, precision)


VARIANTS = [
    *({"activation": act} for act in ("leaky_relu", "elu", "silu", "gelu", "mish", "hardswish")),
    *({"activation": act, "preact": True} for act in ("elu", "gelu")),
    {"attention": "se", "norm": "group", "antialias": "blur"},
    {"attention": "eca", "preact": True, "antialias": "avg"},
    {"downsample": "pad", "stem": "tiered", "stem_pool": "conv", "stride_on": "1x1"},
    {"downsample": "avg", "output_stride": 4, "weight_standardization": True, "groups": 4},
    {"downsample_kernel": 3, "stem_pool": "max0", "stem": "deep", "stochastic_depth": 0.5, "dropout": 0.5},
    {"block": "basic", "num_classes": 0, "in_channels": 1, "stem": "conv3"},
]


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_every_part_agrees_with_and_without_fused_operators(variant, fuses, monkeypatch):
    if not fuses:
        monkeypatch.setattr(residuum.inference.optimize, "onednn_fuses", lambda dtype: False)
    model = network(**SMALL | variant)
    check(model, images_for(model), "fp32")
    check(model, images_for(model), "bf16")
    if model.config.norm == "batch":  # a group of one value is no group
        check(model, images_for(model, size=(7, 1)))


def images_for(model, count=2, size=(61, 45)):
    return torch.randn(count, model.config.in_channels, *size)


def test_a_convolution_and_what_follows_is_one_operation_where_onednn_has_it():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    assert onednn_fuses(torch.float32)
    if choose_precision("auto", torch.device("cpu"))[0] == "bf16":  # with AVX2 alone it refuses bf16
        assert onednn_fuses(torch.bfloat16)
    net = optimize_for_inference(network(**SMALL), precision="fp32")
    kinds = {type(m) for m in net.modules()}
    assert FusedConv in kinds
    assert not kinds & {FoldedConv, nn.BatchNorm2d, nn.Conv2d}


def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch):
    for broken in (lambda *args: (_ for _ in ()).throw(AttributeError("no such operator")), lambda conv, x, *a: x):
        monkeypatch.setattr(FusedConv, "forward", broken)
        onednn_fuses.cache_clear()
        assert not onednn_fuses(torch.float32)
        check(network(**SMALL), torch.randn(2, 3, 32, 32))
    monkeypatch.undo()
    onednn_fuses.cache_clear()


def test_the_network_and_the_images_are_left_as_they_were():
    model = network(**SMALL).train()
    images = torch.randn(2, 3, 32, 32)
    before, given = copy.deepcopy(model.state_dict()), images.clone()
    optimize_for_inference(model)(images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(images, given)
    model(images).sum().backward()
    assert model.conv1.weight.grad is not None


def test_features_are_those_of_the_network_though_blocks_write_over_their_input():
    model = network(block="basic", depths=(1, 2, 1), widths=(16, 16, 16), output_stride=4, stem_width=16)
    images = torch.randn(2, 3, 40, 40)
    net = optimize_for_inference(model, precision="fp32")
    for levels in (None, [0, 2], [3], [0, 1, 2, 3]):
        with torch.no_grad():
            expected = model.features(images, levels)
        got = net.features(images, levels)
        assert len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.shape == theirs.shape
            assert relative(ours, theirs) < 1e-5
    assert net.feature_info == model.feature_info
    with pytest.raises(ConfigError, match="levels is"):
        net.features(images, [4])


def test_sizes_that_take_turns_beyond_those_kept_stay_right():
    model = network(**SMALL)
    net = optimize_for_inference(model, precision="fp32")
    batches = [torch.randn(n, 3, 32, 32 + n) for n in range(1, SHAPES_KEPT + 3)]
    for images in 2 * batches:
        assert relative(net(images), plainly(model, images)) < 1e-5
    assert net(torch.randn(0, 3, 32, 32)).shape == (0, 10)


def test_frozen_norms_fold_and_parts_put_in_by_the_user_stay():
    model = freeze(network(**SMALL), 1)
    model.fc = nn.Sequential(nn.Linear(model.config.num_features, 5), nn.Tanh())
    model.layer1[0].conv2 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), nn.Sigmoid())
    model.layer1[1].se = nn.Hardtanh(-0.5, 0.5)
    check(model, torch.randn(2, 3, 32, 32))


def test_precision_stays_as_asked_under_autocast_and_gradients_end():
    model, images = network(**SMALL), torch.randn(2, 3, 32, 32, requires_grad=True)
    net = optimize_for_inference(model, precision="fp32")
    with torch.autocast("cpu", torch.bfloat16):
        got = net(images.double())
    assert not got.requires_grad
    assert relative(got, plainly(model, images)) < 1e-5


def test_auto_takes_what_the_device_computes(monkeypatch):
    model = network(**SMALL)
    for computes, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda computes=computes: {"amx_bf16": computes})
        net = optimize_for_inference(model)
        assert net.precision == name
        assert "bf16" in net.why


def test_narrow_groups_made_one_are_the_same_convolution(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for groups, channels, fewer in ((6, 24, 3), (3, 12, 3), (6, 48, 6)):  # groups of 4, an odd number of them, of 8
        weight = torch.randn(channels, channels // groups, 3, 3)
        wide, number = wide_enough(weight, groups)
        given = torch.randn(2, channels, 9, 7)
        expected = torch.nn.functional.conv2d(given, weight, groups=groups)
        torch.testing.assert_close(torch.nn.functional.conv2d(given, wide, groups=number), expected)
        assert number == fewer
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert wide_enough(torch.randn(24, 4, 3, 3), 6)[1] == 6
    check(network("resnext50_32x4d", depths=(1, 1, 1, 1), num_classes=10), torch.randn(1, 3, 40, 36))


def test_what_cannot_be_is_refused_in_a_sentence():
    model = network(**SMALL)
    net = optimize_for_inference(model, precision="fp32")
    wrong = [
        (ConfigError, "must be one of auto, fp32, bf16, fp16", lambda: optimize_for_inference(model, precision="int8")),
        (DeviceError, "fp16 is for accelerators", lambda: optimize_for_inference(model, precision="fp16")),
        (ConfigError, "cannot train", net.train),
        (ConfigError, "keeps its device and precision", net.half),
        (DataError, "takes (N, 3, H, W)", lambda: net(torch.randn(1, 1, 32, 32))),
        (DataError, "takes (N, 3, H, W)", lambda: net(torch.randn(3, 32, 32))),
        (DeviceError, "move the images", lambda: net(torch.randn(1, 3, 32, 32, device="meta"))),
    ]
    if onednn_fuses(torch.float32):
        wrong += [(ConfigError, "not saved or copied", act) for act in (net.state_dict, lambda: copy.deepcopy(net))]
    for kind, says, act in wrong:
        with pytest.raises(ResiduumError) as raised:
            act()
        assert type(raised.value) is kind
        assert says in str(raised.value)
    assert net.eval() is net


@pytest.mark.slow
def test_top1_of_a_trained_network_is_unchanged_and_predict_says_it(command, tmp_path, monkeypatch):
    from residuum.data.catalog import scan
    from residuum.data.settings import DataSettings
    from residuum.data.sources import normalise, open_dataset

    monkeypatch.chdir(tmp_path)
    assert command("train", "--epochs", 12, "--out", "run").code == 0
    digits = open_dataset(scan("digits"), DataSettings(), channels=1, cache=tmp_path)
    model = load(tmp_path / "run" / "weights.safetensors").eval()
    pixels = digits.test.images.permute(0, 3, 1, 2)
    images = normalise(pixels, digits.preprocessing)
    expected = plainly(model, images).argmax(1)
    assert (expected == digits.test.labels).float().mean() > 0.8
    for precision in TOLERANCE:
        assert torch.equal(optimize_for_inference(model, precision=precision)(images).argmax(1), expected)
    names = [f"{i}.png" for i in range(19)]
    for name, image in zip(names, pixels, strict=False):
        Image.fromarray(image[0].numpy()).save(name)
    told = list(predict("run", names, top=2))
    assert [p.path for p in told] == names
    assert [int(p.classes[0][0]) for p in told] == expected[: len(names)].tolist()
    shares = plainly(model, images[: len(names)]).softmax(1).amax(1)
    assert all(abs(p.classes[0][1] - share) < 0.03 for p, share in zip(told, shares.tolist(), strict=True))
