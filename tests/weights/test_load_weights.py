"""Weights of others: what is adapted, what is reported, what is refused, and that a refusal changes nothing."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.networks import scramble

from residuum import ResNetConfig, WeightsError, create, load_weights, save
from residuum.preprocessing import IMAGENET
from residuum.weights.converting import convert, inspect
from residuum.weights.files import load, read_checkpoint

CONFIG = ResNetConfig(block="basic", depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=5)


@pytest.fixture
def source():
    torch.manual_seed(0)
    model = create(CONFIG)
    scramble(model)
    return model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone."])
def test_checkpoints_in_the_wild(source, tmp_path, nest, prefix):
    state = {prefix + k.replace("fc.", "linear."): v for k, v in source.state_dict().items()}
    torch.save(state if nest is None else {nest: state, "epoch": 3, "acc": 0.9}, tmp_path / "net.pth")
    model = create(CONFIG)
    report = load_weights(model, tmp_path / "net.pth")
    assert same(model, source)
    assert report.layout == "cifar"
    assert report.renamed["linear.weight"] == "fc.weight"


def test_option_b_shortcuts_of_cifar_repositories(source):
    state = {k.replace("downsample", "shortcut").replace("fc", "linear"): v for k, v in source.state_dict().items()}
    model = create(CONFIG)
    assert "layer2.0.shortcut.0.weight" in load_weights(model, state).renamed
    assert same(model, source)


def test_option_a_networks_of_cifar_repositories():
    torch.manual_seed(0)
    source, model = create("cifar_resnet20"), create("cifar_resnet20")
    state = {f"module.{k}".replace("fc.", "linear."): v for k, v in source.state_dict().items()}
    load_weights(model, {"state_dict": state})
    assert same(model, source)


def test_other_classes_start_the_head_anew_and_say_so(source):
    model = create(CONFIG, num_classes=3)
    torch.nn.init.constant_(model.fc.weight, 7.0)
    report = load_weights(model, source.state_dict())
    assert "head of 5 classes was left out" in str(report)
    assert not (model.fc.weight == 7.0).any()
    assert torch.equal(model.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


def test_a_network_without_a_head_leaves_it_out_and_says_so(source):
    report = load_weights(create(CONFIG, num_classes=0), source.state_dict())
    assert "the head was left out" in str(report)
    assert not report.unexpected


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_image_channels_are_adapted_as_timm_does(source, channels):
    timm = pytest.importorskip("timm")
    model = create(CONFIG, in_channels=channels)
    report = load_weights(model, source)
    expected = timm.models.adapt_input_conv(channels, source.conv1.weight.detach())
    assert torch.allclose(model.conv1.weight, expected)
    assert f"from 3 to {channels} image channels" in str(report)


def test_grey_images_give_what_the_colour_network_gives_them(source):
    model = create(CONFIG, in_channels=1).eval()
    load_weights(model, source)
    x = torch.randn(2, 1, 32, 32)
    assert torch.allclose(model(x), source.eval()(x.expand(-1, 3, -1, -1)), atol=1e-5)


def test_without_strict_what_fits_is_loaded_and_the_rest_reported(source):
    state = source.state_dict()
    del state["layer1.0.conv1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    model = create(CONFIG)
    with pytest.raises(
        WeightsError, match=r"missing 'layer1.0.conv1.weight'.*unexpected 'extra.*another shape 'layer2.0"
    ):
        load_weights(model, state)
    report = load_weights(model, state, strict=False)
    assert report.missing == ("layer1.0.conv1.weight",)
    assert report.unexpected == ("extra.weight",)
    assert report.reshaped == ("layer2.0.conv1.weight",)
    assert torch.equal(model.fc.weight, source.fc.weight)


class Evil:
    def __reduce__(self):
        return print, ("this code came with the file",)


def bad_sources(folder, model):
    state = model.state_dict()
    good = folder / "good.safetensors"
    save(model, good)
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    header = bytearray(content)
    header[20] ^= 0x40
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "flipped.safetensors").write_bytes(flipped)
    (folder / "header.safetensors").write_bytes(header)
    torch.save({"model": Evil()}, folder / "evil.pt")
    (folder / "evil.pkl").write_bytes(pickle.dumps({"model": Evil()}))
    (folder / "junk.pt").write_bytes(b"junk")
    (folder / "empty.pt").write_bytes(b"")
    torch.save(state, folder / "whole.pt")
    (folder / "half.pt").write_bytes((folder / "whole.pt").read_bytes()[:5000])
    torch.save({"epoch": 3}, folder / "none.pt")
    torch.save(create("resnet18", width=0.25).state_dict(), folder / "resnet18.pt")
    save_file(state | {"fc.bias": torch.tensor([0.0, float("nan"), 0, 0, 0])}, folder / "nan.safetensors")
    torch.save({f"features.{i}": torch.zeros(2) for i in range(9)}, folder / "vgg.pt")
    return {
        "truncated.safetensors": "cannot be read",
        "flipped.safetensors": "is damaged",
        "header.safetensors": "cannot be read|damaged|no residuum config",
        "evil.pt": "would run code",
        "evil.pkl": "would run code",
        "junk.pt": "cannot be read",
        "empty.pt": "cannot be read",
        "half.pt": "cannot be read",
        "none.pt": "holds no state dict",
        "resnet18.pt": "nearest to preset 'resnet18' but for widths, stem_width",
        "nan.safetensors": "NaN or infinity in 'fc.bias'",
        "vgg.pt": "not the weights of a residual network",
        "absent.pt": "there is no weights file",
    }


def test_bad_sources_get_one_sentence_and_leave_the_network_as_it_was(source, tmp_path, capsys):
    model = create(CONFIG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name, says in bad_sources(tmp_path, source).items():
        with pytest.raises(WeightsError, match=says) as caught:
            load_weights(model, tmp_path / name)
        assert "\n" not in str(caught.value), name
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), name
    assert "this code came" not in capsys.readouterr().out


def test_a_flipped_bit_is_found_on_loading_a_network(source, tmp_path):
    bad_sources(tmp_path, source)
    with pytest.raises(WeightsError, match="is damaged"):
        load(tmp_path / "flipped.safetensors")


def test_what_is_no_source_is_refused():
    with pytest.raises(WeightsError, match="a path, a state dict or a reference"):
        load_weights(create(CONFIG), 3)


# -- convert and inspect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["torchvision", "timm", "hf", "detectron2", "residuum"])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_converting_there_and_back_gives_equal_tensors(command, tmp_path, to, ending):
    torch.manual_seed(0)
    model = create("resnet18", depths=(1, 1, 1, 1), num_classes=4)
    save(model, tmp_path / "net.safetensors")
    there, back = tmp_path / f"there{ending}", tmp_path / "back.safetensors"
    assert command("convert", tmp_path / "net.safetensors", there, "--to", to).code == 0
    assert command("convert", there, back).code == 0
    again = load(back)
    assert again.config == model.config
    parts = [(k, v) for k, v in model.state_dict().items() if to != "detectron2" or "num_batches" not in k]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in parts)


def test_hugging_face_reads_the_folder_that_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 2), widths=(8, 16), stem_width=8, num_classes=4, stride_on="1x1", first_stride=2,
                          output_stride=64, activation="silu")  # fmt: skip
    model = create(config).eval()
    save(model, tmp_path / "net.safetensors")
    convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf")
    peer = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "hf").eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model(x), peer(x).logits, atol=1e-5)
    assert convert(tmp_path / "hf", tmp_path / "back.safetensors", "residuum") == config
    with pytest.raises(WeightsError, match="exists already"):
        convert(tmp_path / "net.safetensors", tmp_path / "hf", "hf")


def test_weights_that_say_nothing_of_their_images_get_it_said_and_predict(command, refused, tmp_path):
    theirs, net = tmp_path / "theirs.pth", tmp_path / "net.safetensors"
    torch.save(create("resnet18", num_classes=3, width=0.25).state_dict(), theirs)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    assert "--classes names.txt --preprocessing imagenet" in refused("predict", theirs, tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n\nowl\n")
    words = ("--preprocessing", "imagenet", "--classes", tmp_path / "names.txt")
    assert command("convert", theirs, net, *words).code == 0
    assert load(net).preprocessing == IMAGENET
    assert load(net).classes == ("cat", "dog", "owl")
    assert "owl" in command("predict", net, tmp_path / "a.png").out

    other = dataclasses.replace(IMAGENET, image_size=(64, 64), interpolation="bicubic")
    (tmp_path / "how.json").write_text(json.dumps(other.to_dict()))
    convert(theirs, tmp_path / "two.safetensors", "residuum", preprocessing=str(tmp_path / "how.json"))
    convert(theirs, tmp_path / "three.safetensors", "residuum", preprocessing=str(tmp_path / "two.safetensors"))
    assert load(tmp_path / "three.safetensors").preprocessing == other


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("net.pt --preprocessing imagenet", "has no place for classes and preprocessing"),
        ("hub --to hub --preprocessing imagenet", "write them to a .safetensors file"),
        ("net.safetensors --preprocessing theirs.pth", "does not say its preprocessing itself"),
        ("net.safetensors --preprocessing none.json", "cannot be read"),
        ("net.safetensors --preprocessing half.json", "'half.json': preprocessing does not say image_size"),
        ("net.safetensors --preprocessing no.json", "'no.json': "),
        ("net.safetensors --classes imagenet", "there are 1000 names of classes, but the network has 3"),
        ("net.safetensors --classes none.txt", "cannot be read"),
    ],
)
def test_what_cannot_be_said_of_weights_is_refused_and_nothing_written(refused, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    torch.save(create("resnet18", num_classes=3, width=0.25).state_dict(), "theirs.pth")
    Path("half.json").write_text('{"channels": 3}')
    Path("no.json").write_text("{")
    before = sorted(tmp_path.iterdir())
    assert says in refused("convert", "theirs.pth", *words.split())
    assert sorted(tmp_path.iterdir()) == before


def test_grey_networks_have_no_preprocessing_of_imagenet(tmp_path):
    save(create("resnet18", num_classes=3, width=0.25, in_channels=1), tmp_path / "grey.safetensors")
    with pytest.raises(WeightsError, match="imagenet is of 3 channels, but the network takes 1"):
        convert(tmp_path / "grey.safetensors", tmp_path / "x.safetensors", "residuum", preprocessing="imagenet")


def test_inspect_says_layout_preset_parameters_precision_and_nans(command, tmp_path):
    state = create("resnet18").half().state_dict()
    state["fc.bias"][3] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "net.pt")
    said = " ".join(command("inspect", tmp_path / "net.pt").out.split())
    for fact in ("torchvision", "resnet18", "11,689,512", "float16", "fc.bias"):
        assert fact in said
    assert inspect(tmp_path / "net.pt").config.block == "basic"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("inspect none.pt", "there is no weights file"),
        ("convert none.pt out.pt", "there is no weights file"),
        ("convert net.pt out.bin", "does not end in"),
        ("convert net.pt out.pt --to timm", "timm has no network with stem='conv3'"),
        ("convert half.pt out.pt", "not the whole of it"),
        ("convert net.pt no/out.pt", "cannot write"),
        ("inspect hf:nothing", "is no reference"),
        ("inspect torchvision:resnet51.DEFAULT", "no residual network 'resnet51'; did you mean"),
        ("inspect torchvision:resnet50.V9", "it has IMAGENET1K_V1"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(refused, tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    state = create("cifar_resnet20").state_dict()
    torch.save(state, "net.pt")
    torch.save({k: v for k, v in state.items() if k != "layer2.1.conv2.weight"}, "half.pt")
    assert says in refused(*line.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.pt", "net.pt"]


def test_a_run_folder_is_a_source(source, tmp_path):
    save(source, tmp_path / "weights.safetensors")
    assert set(read_checkpoint(tmp_path).tensors) == set(source.state_dict())
