"""Networks in 8-bit integers: what is quantised, what the gate catches, which images may set the ranges."""

import dataclasses
import json

import pytest
import torch
from tests.networks import scramble

import residuum
from residuum import Preprocessing
from residuum.data.sources import Split, normalise
from residuum.errors import ConfigError, DataError, ExportError
from residuum.export.int8 import GateError, calibration, quantize
from residuum.export.int8.capture import captured
from residuum.export.int8.gate import NETWORKS, _unlike, ratio
from residuum.export.int8.report import tables

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PREPROCESSING = Preprocessing(3, (16, 16), (0.5, 0.45, 0.4), (0.25, 0.24, 0.26), 0.0)


def pictures(count, seed=0):
    """Smooth coloured images, uint8 (N, 16, 16, 3), reddish ones on the whole."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=draw) * torch.tensor([1.0, 0.7, 0.5])[:, None, None]
    fine = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def network(seed=0):
    torch.manual_seed(seed)
    model = residuum.create("cifar_resnet20", num_classes=4, width=0.5, depths=(1, 1, 1))
    scramble(model)
    model.preprocessing, model.classes = PREPROCESSING, ("a", "b", "c", "d")
    model.eval()
    with torch.no_grad():  # each class about as often as the others
        logits = model(normalise(pictures(100, seed=2).permute(0, 3, 1, 2), PREPROCESSING))
        model.fc.bias -= logits.mean(0)
        model.fc.weight /= logits.std(0)[:, None]
        model.fc.bias /= logits.std(0)
    return model


def labelled(model, images):
    """A split whose labels are what the network says, so that it is always right."""
    with torch.no_grad():
        return Split(images, model(normalise(images.permute(0, 3, 1, 2), PREPROCESSING)).argmax(1))


@pytest.fixture(autouse=True)
def no_time_for_speed(monkeypatch):
    monkeypatch.setattr("residuum.export.int8.gate.SECONDS", 0.0)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def train(model):
    return labelled(model, pictures(120))


@pytest.fixture(scope="module")
def test_images(model):
    """Those of 300 images of whose class the network is surest: it is not trained, and its other answers are close."""
    images = pictures(300, seed=1)
    with torch.no_grad():
        first, second = model(normalise(images.permute(0, 3, 1, 2), PREPROCESSING)).topk(2).values.T
    return labelled(model, images[(first - second).argsort(descending=True)[:80]])


@pytest.fixture(scope="module")
def images(train):
    return calibration(train, PREPROCESSING, count=64)


# -- what is quantised -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(model, images):
    program, tapped = captured(model, PREPROCESSING.image_size)
    net = NETWORKS["onnx"](program, tapped.names)
    return net, net.quantized(images.batches(), method="minmax", reduced=True)


@pytest.mark.slow
def test_every_sum_and_the_classifier_take_integers_on_all_inputs(made):
    _, quantized = made
    makers = {output: node.op_type for node in quantized.graph.node for output in node.output}
    sums = [node for node in quantized.graph.node if node.op_type == "Add"]
    assert len(sums) == 3
    for node in [*sums, *(n for n in quantized.graph.node if n.op_type in ("Conv", "Gemm"))]:
        assert {makers[value] for value in node.input} == {"DequantizeLinear"}, node.name


@pytest.mark.slow
def test_the_stem_takes_the_normalised_image_in_integers(made):
    _, quantized = made
    first = [node.op_type for node in quantized.graph.node if "images" in node.input]
    assert first == ["QuantizeLinear"]


@pytest.mark.slow
def test_logits_are_not_quantised(made):
    _, quantized = made
    assert [node.op_type for node in quantized.graph.node if "logits" in node.output] == ["Gemm"]


@pytest.mark.slow
def test_weights_have_a_scale_for_each_channel(made):
    _, quantized = made
    sizes = {tensor.name: tuple(tensor.dims) for tensor in quantized.graph.initializer}
    scales = {node.input[0]: sizes[node.input[1]] for node in quantized.graph.node if node.op_type == "DequantizeLinear"
              and node.input[0] in sizes}  # fmt: skip
    assert all(scales[name] == sizes[name][:1] for name in scales if len(sizes[name]) == 4)
    assert sum(len(sizes[name]) == 4 for name in scales) == 7


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_weights_of_one_scale_for_all_channels_are_refused(runtime, model, images, test_images, monkeypatch):
    if runtime == "openvino":
        pytest.importorskip("nncf")
    rightly = NETWORKS[runtime].quantized
    monkeypatch.setattr(NETWORKS[runtime], "quantized", lambda *a, **how: rightly(*a, **how | {"per_channel": False}))
    with pytest.raises(ExportError, match="the weights of 7 convolutions, such as .*, have one scale for all channels"):
        quantize(model, images, test_images, runtime=runtime, threads=1)


@pytest.mark.slow
def test_a_block_is_named_by_its_output(made, model, test_images):
    net, _ = made
    assert net.names == ("stem", "layer1.0", "layer2.0", "layer3.0", "head")
    seen = {}
    hooks = [
        block.register_forward_hook(lambda m, i, o, name=f"{part.name}.{n}": seen.__setitem__(name, o.clone()))
        for part in model.parts() for n, block in enumerate(part.blocks)
    ]  # fmt: skip
    given = normalise(test_images.images[:2].permute(0, 3, 1, 2), PREPROCESSING)
    with torch.no_grad():
        model(given)
    for hook in hooks:
        hook.remove()
    outputs = dict(zip(net.names, net.outputs(net.model, apart=False)(given), strict=True))
    for name, expected in seen.items():
        torch.testing.assert_close(outputs[name], expected, rtol=1e-4, atol=1e-4)


# -- the gate ----------------------------------------------------------------------------------------------------------


def spoiled(model, times=1000.0):
    """The same network, in which one channel within layer2.0 is so large that the others share few of 256 steps."""
    other = network()
    other.load_state_dict(model.state_dict())
    block = other.layer2[0]
    with torch.no_grad():
        block.bn1.weight[2] *= times
        block.bn1.bias[2] *= times
        block.conv2.weight[:, 2] /= times
    return other


@pytest.mark.slow
def test_a_spoiled_block_is_found_named_first_and_left_in_float(model, images, test_images):
    other = spoiled(model)
    found = quantize(other, images, test_images, runtime="onnx", max_drop=5.0, threads=1).report
    assert found.rounds[0].drop > 5.0
    assert found.rounds[1].kept == ("layer2.0",)
    assert found.worst[0].name == "layer2.0"
    assert found.drop <= 5.0
    worst, whole = tables(found)
    assert worst.rows[0][0] == "layer2.0"
    assert "In float: layer2.0" in whole.note
    assert json.loads(json.dumps(found.to_dict()))["rounds"][1]["kept"] == ["layer2.0"]


@pytest.mark.slow
def test_a_network_that_cannot_be_mended_is_refused_with_its_blocks(model, images, test_images, monkeypatch):
    other = spoiled(model)
    monkeypatch.setattr("residuum.export.int8.gate._worst", lambda blocks, attempts: [])
    with pytest.raises(GateError, match=r"points of top-1 accuracy.*worst is layer2\.0") as failure:
        quantize(other, images, test_images, runtime="onnx", max_drop=1.0, threads=1)
    assert failure.value.table.rows[0][0] == "layer2.0"


@pytest.mark.slow
def test_right_networks_lose_little_and_take_less_room(model, images, test_images):
    found = quantize(model, images, test_images, runtime="onnx", max_drop=5.0, threads=1).report
    assert found.kept == ()
    assert found.agreement >= 0.95
    assert min(block.own for block in found.blocks if block.name != "head") > 25
    assert found.logits > 10
    assert not any(word in note for note in found.notes for word in ("colours", "lower on"))
    assert [speed.batch for speed in found.speed] == [1, 8]


@pytest.mark.slow
def test_nncf_leaves_the_spoiled_block_in_float_and_quantises_every_other_sum(model, images, test_images):
    pytest.importorskip("nncf")
    found = quantize(spoiled(model), images, test_images, runtime="openvino", max_drop=5.0, threads=1)
    assert found.report.rounds[0].drop > 5.0
    assert found.report.rounds[1].kept == ("layer2.0",)
    assert found.report.worst[0].name == "layer2.0"
    operations = {op.get_friendly_name(): op for op in found.model.get_ops()}
    for name in ("layer1.0", "layer3.0"):
        sums = operations[f"{name}, out"].input_value(0).get_node()  # before the activation
        assert sums.get_type_name() == "Add"
        assert {maker(value) for value in sums.input_values()} == {"FakeQuantize"}


def maker(value):
    """The kind of operation that a value comes from, through what only moves or averages values."""
    node = value.get_node()
    while node.get_type_name() in ("Pad", "AvgPool"):
        node = node.input_value(0).get_node()
    return node.get_type_name()


# -- calibration -------------------------------------------------------------------------------------------------------


def test_images_for_calibration_are_spread_over_classes_and_the_same_each_time():
    labels = torch.arange(200) % 4
    labels[150:] = 0
    split = Split(pictures(200), labels)
    first, again = (calibration(split, PREPROCESSING, count=40) for _ in range(2))
    assert torch.equal(first.images, again.images)
    own = {image.numpy().tobytes(): int(label) for image, label in zip(split.images, labels, strict=True)}
    pixels = ((first.images * torch.tensor(PREPROCESSING.std)[:, None, None]
               + torch.tensor(PREPROCESSING.mean)[:, None, None]) * 255).round().to(torch.uint8)  # fmt: skip
    classes = [own[image.permute(1, 2, 0).contiguous().numpy().tobytes()] for image in pixels]
    assert torch.bincount(torch.tensor(classes)).tolist() == [10, 10, 10, 10]
    assert not torch.equal(calibration(split, PREPROCESSING, count=40, seed=1).images, first.images)


def test_too_few_images_are_refused_and_fewer_than_asked_are_told(train):
    with pytest.raises(DataError, match="31 images for calibration are too few"):
        calibration(train.take(torch.arange(120) < 31), PREPROCESSING)
    with pytest.raises(DataError, match="at least 32"):
        calibration(train, PREPROCESSING, count=8)
    some = calibration(train.take(torch.arange(120) < 100), PREPROCESSING, count=300)
    assert (len(some), some.note) == (100, "300 images were asked for, and there are 100")


@pytest.mark.slow
def test_images_of_the_gate_are_refused_for_calibration(model, train, images):
    with pytest.raises(DataError, match="1 of the 64 images for calibration are test images too"):
        chosen = torch.zeros(120, dtype=torch.bool)
        place = next(i for i in range(120) if calibration_has(images, train, i))
        chosen[place] = True
        quantize(model, images, train.take(chosen), runtime="onnx")


def calibration_has(images, split, place):
    pixels = normalise(split.images[place][None].permute(0, 3, 1, 2), PREPROCESSING)
    return bool((images.images == pixels).flatten(1).all(1).any())


@pytest.mark.slow
def test_images_that_were_not_normalised_are_told(model, images, test_images):
    other = dataclasses.replace(images, images=images.images * 0.25 + 0.45)
    found = quantize(model, other, test_images, runtime="onnx", max_drop=100.0, threads=1).report
    assert any("lower on test images" in note for note in found.notes)


def test_colours_in_reverse_order_are_told(images, test_images):
    test_colours = normalise(test_images.images.permute(0, 3, 1, 2), PREPROCESSING).mean((2, 3))
    colours = images.images.mean((2, 3))
    assert _unlike(colours, test_colours) == ""
    assert "reverse order" in _unlike(colours.flip(1), test_colours)
    assert "another kind" in _unlike(colours[:, [1, 0, 2]], test_colours)
    assert _unlike(colours[:, :1], test_colours[:, :1]) == ""


def test_what_cannot_be_is_refused(model, images, test_images):
    for arguments, word in (
        ({"runtime": "tensorrt"}, "int8 is for onnx or openvino"),
        ({"runtime": "onnx", "max_drop": -1.0}, "from 0 to 100"),
        ({"runtime": "onnx", "method": "guess"}, "one of minmax, entropy, percentile"),
    ):
        with pytest.raises(ConfigError, match=word):
            quantize(model, images, test_images, **arguments)


def test_signal_to_noise_is_in_decibels():
    signal = torch.ones(1000)
    assert ratio(signal, signal * 1.1) == pytest.approx(20, abs=1e-4)
    assert ratio(signal, signal) > 250
