"""Which tensors of a checkpoint are the network: prefixes, nests, copies, bookkeeping, two networks, heads."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.networks import scramble
from torch.optim.swa_utils import AveragedModel

from residuum import ResNetConfig, WeightsError, create, load, load_weights
from residuum.weights.converting import convert
from residuum.weights.files import read_checkpoint
from residuum.weights.layouts import LAYOUTS, to_theirs

CONFIG = ResNetConfig(block="basic", depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=5)


def network(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    model = create(config)
    scramble(model)
    return model


def same(a, b, but=()):
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items() if not k.startswith(but or ("nothing",)))


def state(model, prefix="", head=True):
    return {prefix + k: v for k, v in model.state_dict().items() if head or not k.startswith("fc.")}


@pytest.mark.parametrize(
    "prefix",
    ["encoder_q.", "encoder.", "net.", "resnet.", "online_encoder.net.", "student.backbone.", "feature_extractor.",
     "1.", "_orig_mod.module.model.", "any.thing.at.all."],
)  # fmt: skip
def test_a_prefix_is_whatever_stands_before_names_that_fit_a_network(prefix):
    source, model = network(), create(CONFIG, num_classes=0)
    load_weights(model, {"state_dict": state(source, prefix, head=False)})
    assert same(model, source)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_prefixes_are_found_before_the_names_of_every_layout(layout):
    config = CONFIG.replace(preact=layout == "timm-v2", block="bottleneck" if layout == "hf" else "basic")
    source, model = network(config=config), create(config)
    theirs = {f"model.{to_theirs(name, LAYOUTS[layout])}": v for name, v in source.state_dict().items()}
    load_weights(model, theirs)
    assert same(model, source)


def test_the_children_of_a_sequential_are_known_by_their_numbers():
    import torchvision

    peer = torchvision.models.resnet18(num_classes=5).eval()
    cut = torch.nn.Sequential(*list(peer.children())[:-1]).eval()
    model = create("resnet18", num_classes=0).eval()
    load_weights(model, {f"encoder.{k}": v for k, v in cut.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(model(x), cut(x).flatten(1), atol=1e-5)


def test_a_tensor_beside_the_state_dict_is_no_network():
    source, model = network(), create(CONFIG)
    load_weights(model, {"state_dict": state(source, "module."), "best_acc1": torch.tensor(69.7)})
    assert same(model, source)


@pytest.mark.parametrize("layers", [2, 60])
def test_an_optimizer_beside_the_weights_does_not_matter(tmp_path, layers):
    source, model = network(), create(CONFIG)
    optimizer = torch.optim.Adam(source.parameters())
    source(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {"model": source.state_dict(), "optimizer": optimizer.state_dict(), "history": [0.5] * layers}
    torch.save(content, tmp_path / "x.pt")
    load_weights(model, tmp_path / "x.pt")
    assert same(model, source)


def test_bookkeeping_of_tools_is_left_out():
    source, model = network(), create(CONFIG)
    load_weights(model, AveragedModel(source).state_dict())
    assert same(model, source)
    counted = source.state_dict() | {
        "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1), "criterion.weight": torch.ones(5)
    }  # fmt: skip
    model = create(CONFIG)
    assert not load_weights(model, counted).unexpected
    assert same(model, source)


def test_two_networks_are_refused_by_name_and_either_is_taken_by_name():
    first, second = network(0), network(1)
    both = {"state_dict": state(first, "encoder_q.") | state(second, "encoder_k.")}
    model = create(CONFIG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"2 networks: 'state_dict.encoder_q', 'state_dict.encoder_k'; name one"):
        load_weights(model, both)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load_weights(model, both, prefix="encoder_k")
    assert same(model, second)
    load_weights(model, both, prefix="state_dict.encoder_q.")
    assert same(model, first)
    with pytest.raises(WeightsError, match=r"no networks named 'teacher'; it has 'state_dict.encoder_q'"):
        load_weights(model, both, prefix="teacher")


def test_layers_of_two_networks_are_never_mixed():
    first, second = network(0), network(1)
    model = create(CONFIG)
    report = load_weights(model, {"state_dict": state(first, "model.") | state(second, "backbone.", head=False)})
    assert same(model, first)
    assert "another network, without a classifier, was left out: prefix 'state_dict.backbone' takes it" in str(report)


def test_an_averaged_copy_is_taken_by_name_and_never_silently():
    raw, averaged = network(0), network(1)
    content = {"state_dict": state(raw), "state_dict_ema": state(averaged, "module.")}
    model = create(CONFIG)
    report = load_weights(model, content)
    assert same(model, raw)
    assert "an averaged copy was left out: prefix 'state_dict_ema.module' takes it" in str(report)
    load_weights(model, content, prefix="state_dict_ema")
    assert same(model, averaged)
    report = load_weights(model, {"model_ema": content["state_dict_ema"]})
    assert "these are averaged weights" in str(report)


def test_one_network_under_two_keys_is_one():
    weights = state(network())
    load_weights(create(CONFIG), {"model": weights, "state_dict": weights})


def test_a_backbone_goes_into_a_network_with_a_head_and_the_report_says_so():
    source, model = network(0), network(1)
    head = model.fc.weight.clone()
    report = load_weights(model, state(source, head=False))
    assert "the weights have no head: the network's own was left as it is" in str(report)
    assert torch.equal(model.fc.weight, head)
    assert same(model, source, but=("fc.",))


def test_a_projection_head_is_no_classifier():
    source, model = network(0), create(CONFIG)
    weights = state(source, "encoder.", head=False)
    weights |= {"encoder.fc.0.weight": torch.zeros(8, 16), "encoder.fc.2.weight": torch.zeros(4, 8)}
    report = load_weights(model, weights)
    assert "a head of another form ('fc.0.weight', 'fc.2.weight') was left out" in str(report)
    assert load(weights).config.num_classes == 0


def test_mmpretrains_classifier_beside_its_backbone_is_found():
    source, model = network(0), create(CONFIG)
    weights = {f"{'head' if k.startswith('fc.') else 'backbone'}.{k}": v for k, v in state(source).items()}
    load_weights(model, {"state_dict": weights})
    assert same(model, source)


def test_what_lies_beside_a_prefixed_network_is_left_out_and_said():
    weights = state(network(), "backbone.body.") | {"rpn.head.weight": torch.zeros(3)}
    report = str(load_weights(create(CONFIG), weights))
    assert "tensors beside the network (1) were left out: 'rpn.head.weight'" in report


# -- kinds of files ----------------------------------------------------------------------------------------------------


def test_notes_of_training_scripts_are_read_by_an_allow_list(tmp_path):
    source, model = network(), create(CONFIG)
    notes = {"args": argparse.Namespace(lr=0.1), "loss": np.float64(0.5), "curve": np.arange(3.0)}
    for ending, zipped in ((".pth", True), (".tar", False)):
        torch.save(
            {"model": source.state_dict()} | notes, tmp_path / f"x{ending}", _use_new_zipfile_serialization=zipped
        )
        load_weights(model, tmp_path / f"x{ending}")
        assert same(model, source)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_numpys_pickles_as_detectron2_publishes_them_are_read(tmp_path, protocol):
    import pickle

    source, model = network(), create(CONFIG)
    arrays = {to_theirs(k, LAYOUTS["detectron2"]): v.numpy() for k, v in source.state_dict().items() if v.ndim}
    arrays["stem.conv1.weight"] = np.asfortranarray(arrays["stem.conv1.weight"])
    arrays["linear.bias"] = arrays["linear.bias"].astype(">f4")
    content = pickle.dumps({"model": arrays, "__author__": "x"}, protocol)
    (tmp_path / "R-50.pkl").write_bytes(content)
    assert load_weights(model, tmp_path / "R-50.pkl").layout == "detectron2"
    assert same(model, source, but=("num_batches",))


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin", ".ckpt", ".pth.tar", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_content_and_not_the_ending_says_what_a_file_is(tmp_path, ending, kind):
    source, model, path = network(), create(CONFIG), tmp_path / f"net{ending}"
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    load_weights(model, path)
    assert same(model, source)
    assert same(load(path), source)
    convert(path, tmp_path / "out.safetensors", "residuum")
    assert read_checkpoint(path).config == CONFIG


def test_quantised_weights_get_one_sentence_strict_or_not():
    import warnings

    import torchvision

    with warnings.catch_warnings(action="ignore"):
        weights = torchvision.models.quantization.resnet18(quantize=True).state_dict()
    for strict in (True, False):
        with pytest.raises(WeightsError, match="holds quantised numbers in 'conv1.weight'") as caught:
            load_weights(create("resnet18"), weights, strict=strict)
        assert len(str(caught.value)) <= 500


# -- what the network is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_go_into_a_network_on_the_meta_device(dtype):
    config = CONFIG.replace(antialias="blur")
    source = network(config=config)
    with torch.device("meta"):
        model = create(config).to(dtype)
    model.conv1.requires_grad_(False)
    load_weights(model, {k: v for k, v in source.state_dict().items() if "num_batches" not in k})
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.conv1.weight.requires_grad
    assert isinstance(model.conv1.weight, torch.nn.Parameter)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x.to(dtype)), source.eval().to(dtype)(x.to(dtype)))


def test_loading_changes_neither_the_source_nor_shares_its_tensors():
    source = network()
    weights = {k: v.clone() for k, v in source.state_dict().items()}
    with torch.device("meta"):
        model = create(CONFIG)
    for target in (model, create(CONFIG)):
        load_weights(target, weights)
        with torch.no_grad():
            target.conv1.weight.add_(1)
        assert torch.equal(weights["conv1.weight"], source.conv1.weight)


@pytest.mark.slow
def test_a_wrapped_network_is_loaded_into():
    source = network()
    for wrap in (torch.nn.DataParallel, AveragedModel, torch.compile):
        model = create(CONFIG)
        load_weights(wrap(model), source.state_dict())
        assert wrap is AveragedModel or same(model, source)
    with pytest.raises(WeightsError, match=r"into a residuum.ResNet, not into a Linear"):
        load_weights(torch.nn.Linear(2, 2), source.state_dict())


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w.to(torch.int8), lambda w: w.to(torch.complex64), lambda w: w.to_sparse(), lambda w: w.to("meta"),
        lambda w: w.to(torch.float8_e4m3fn), lambda w: w * float("nan"), lambda w: w.double() + 1e300,
        lambda w: torch.nested.nested_tensor([w]), lambda w: torch.zeros(1).expand(300_000, 300_000),
    ],
    ids=["int8", "complex", "sparse", "meta", "float8", "nan", "beyond float32", "nested", "unfolds to 360 GB"],
)  # fmt: skip
def test_tensors_that_are_no_weights_are_refused_and_the_network_stays(strict, spoil):
    weights = network().state_dict()
    weights["layer2.0.conv2.weight"] = spoil(weights["layer2.0.conv2.weight"])
    model = create(CONFIG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, weights, strict=strict)
    assert len(str(caught.value)) <= 500
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_names_from_files_are_escaped_and_cut_short():
    weights = network().state_dict() | {"\x1b[31m" * 1000 + "x": torch.zeros(1), "y" * 100_000: torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        load_weights(create(CONFIG), weights)
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    assert "strict=False" in str(caught.value)
