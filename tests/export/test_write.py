"""Exported files: they answer as the network does, say what they are, and are not there when they do not."""

import json
import os
import random
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.networks import relative, scramble
from tests.networks import small_to_export as network
from torch import nn

import residuum
from residuum import Preprocessing, create
from residuum.data.preparing import evaluation_transform, normalise
from residuum.errors import ConfigError, DataError, ExportError
from residuum.export import export
from residuum.export.inputs import Input, Scale
from residuum.inference.engines import compiler
from residuum.inference.predict import predict
from residuum.runtimes import package
from residuum.runtimes.exported import opened
from residuum.runtimes.program import captured

SIZE = (32, 40)
RUNTIME = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch", ".torchscript": "torch"}


def needs(ending):
    pytest.importorskip(RUNTIME[ending])
    if ending == ".onnx":
        pytest.importorskip("onnxscript")


def expected(model, images):
    """Logits of decoded images, uint8 (N, H, W, C), as evaluation computes them."""
    pixels = torch.stack([evaluation_transform(model.preprocessing)(image) for image in images.permute(0, 3, 1, 2)])
    with torch.inference_mode():
        return model(normalise(pixels, model.preprocessing))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2", ".torchscript"])
def test_a_file_takes_images_of_any_size_and_says_what_it_is(ending, tmp_path, here):
    needs(ending)
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = export(model, tmp_path / f"net{ending}")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.logits < 1e-5
    assert found.sizes == 4
    file = opened(tmp_path / f"net{ending}")
    assert (file.classes, file.takes, file.image_size) == (tuple("abcde"), "image", SIZE)
    assert file.preprocessing == model.preprocessing
    assert file.note["versions"]["residuum"] == residuum.__version__
    assert file.config == model.config.to_dict() | {"depths": [1, 1], "widths": [8, 16]}
    photographs = torch.randint(0, 256, (2, 90, 51, 3), dtype=torch.uint8)
    assert relative(file(photographs), expected(model.eval(), photographs)) < 5e-3  # a grey level, here and there
    said = json.loads((tmp_path / f"net{ending}.proof.json").read_text())
    assert said["logits"] == found.logits
    names = {f"net{ending}", f"net{ending}.proof.json"} | ({"net.bin"} if ending == ".xml" else set())
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    "ending", [".onnx", *(pytest.param(e, marks=pytest.mark.slow) for e in (".xml", ".pt2", ".torchscript"))]
)
@pytest.mark.parametrize(
    ("kind", "free"), [("pixels", False), pytest.param("normalized", True, marks=pytest.mark.slow)]
)
def test_a_file_takes_pixels_or_normalised_tensors(ending, kind, free, tmp_path, here):
    needs(ending)
    model = network(in_channels=1)
    precision = "fp32" if ending == ".xml" else "auto"
    export(model, tmp_path / f"net{ending}", input=kind, dynamic_size=free, precision=precision)
    file = opened(tmp_path / f"net{ending}")
    images = torch.randint(0, 256, (3, *SIZE, 1), dtype=torch.uint8)
    other = torch.randint(0, 256, (1, 51, 47, 1), dtype=torch.uint8)
    for given in (images, other) if free else (images,):
        with torch.inference_mode():
            wanted = model(normalise(given.permute(0, 3, 1, 2), model.preprocessing))
        assert relative(file(given), wanted) < 1e-5
    if not free:
        with pytest.raises(DataError, match="images are 51 x 47; .* takes 32 x 40"):
            file(other)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(61, 45), (97, 97), (40, 28)])
def test_a_grey_program_takes_images_of_other_shapes_than_its_example(size):
    model = network(in_channels=1)
    given = Input("image", 1, SIZE, replace(model.preprocessing, image_size=SIZE, crop=1.0))
    program = captured(Scale(given), given.example, given.free)
    images = torch.randint(0, 256, (1, *size, 1), dtype=torch.uint8)
    assert torch.equal(program.module()(images), Scale(given)(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seresnet50", "ecaresnet50d"])
@pytest.mark.parametrize("ending", [".pt2", ".torchscript"])
def test_attention_leaves_the_size_free(name, ending, tmp_path, here):
    model = create(name, depths=(1, 1, 1, 1), width=0.25, num_classes=5).eval()
    scramble(model)
    export(model, tmp_path / f"net{ending}", input="normalized", image_size=(64, 80), dynamic_size=True)
    images = torch.randn(2, 3, 51, 97)
    with torch.inference_mode():
        assert relative(opened(tmp_path / f"net{ending}").run(images), model(images)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
def test_the_proof_runs_the_file_in_a_process_of_its_own(ending, tmp_path):
    needs(ending)
    assert export(network(), tmp_path / f"net{ending}", order="bgr").logits < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("size", "crop"), [((32, 32), 0.875), ((48, 32), 0.9), ((32, 40), 0.0)])
def test_scaling_in_a_graph_gives_the_pixels_of_evaluation(interpolation, size, crop):
    how = Preprocessing(3, size, (0.5,) * 3, (0.2,) * 3, crop, interpolation)
    given = Input("image", 3, size, how)
    run = captured(Scale(given).eval(), given.example, given.free).module()
    draw = random.Random(0)
    for height, width in [(1, 7), (8, 100), *((draw.randrange(1, 300), draw.randrange(1, 300)) for _ in range(15))]:
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        assert torch.equal(run(image[None])[0], evaluation_transform(how)(image.permute(2, 0, 1))), (height, width)


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_a_compiled_file_takes_pixels_and_opens_on_such_a_processor_alone(tmp_path, here, monkeypatch):
    model, path = network(in_channels=1), tmp_path / "net.aoti.pt2"
    assert export(model, path).logits < 1e-5
    file = opened(path)
    assert (file.takes, file.classes, file.preprocessing) == ("pixels", tuple("abcde"), model.preprocessing)
    for count in (1, 2, 5):
        images = torch.randint(0, 256, (count, *SIZE, 1), dtype=torch.uint8)
        with torch.inference_mode():
            wanted = model(normalise(images.permute(0, 3, 1, 2), model.preprocessing))
        assert relative(file(images), wanted) < 1e-5
    path.replace(tmp_path / "renamed.pt2")
    assert opened(tmp_path / "renamed.pt2").takes == "pixels", "what a file is lies in it, not in its name"
    here = package.processor()
    monkeypatch.setattr(package, "processor", lambda: here | {"vectors": "OTHER"})
    with pytest.raises(ExportError, match="compiled for vectors .*, and here it is OTHER; export it here"):
        opened(tmp_path / "renamed.pt2")


class Fixed(nn.Module):
    """A layer that looks at how many images there are."""

    def forward(self, x):
        return x if x.shape[0] == 2 else x + 1


def with_hook():
    model = network()
    model.layer1[0].register_forward_hook(lambda module, given, out: None)
    return model


def with_nan():
    model = network()
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    return model


def with_layer(layer):
    model = network()
    model.layer1[0].bn2 = layer
    return model.eval()


REFUSED = [
    (ConfigError, "must end in .onnx, .xml, .aoti.pt2, .pt2, .torchscript",
     lambda path: export(network(), path / "net.tflite")),
    (ConfigError, "takes images of one size", lambda path: export(network(), path / "net.aoti.pt2", input="image")),
    (ConfigError, "give image_size", lambda path: export(network(False), path / "net.pt2")),
    (ConfigError, "does not say its preprocessing",
     lambda path: export(network(False), path / "net.pt2", input="image", image_size=SIZE)),
    (ConfigError, "has a forward hook", lambda path: export(with_hook(), path / "net.pt2")),
    (ConfigError, "'fc.weight' holds NaN", lambda path: export(with_nan(), path / "net.pt2")),
    (ConfigError, "an opset is ONNX's", lambda path: export(network(), path / "net.pt2", opset=20)),
    (ConfigError, "half stores", lambda path: export(network(), path / "net.pt2", half=True)),
    (ConfigError, "leave precision out", lambda path: export(network(), path / "net.pt2", precision="fp32")),
    (ConfigError, "it must be one of auto, fp32", lambda path: export(network(), path / "net.xml", precision="bf16")),
    (ConfigError, "order bgr is for uint8 images",
     lambda path: export(network(), path / "net.pt2", order="bgr", input="normalized")),
    (ConfigError, "takes any size already", lambda path: export(network(), path / "net.pt2", dynamic_size=True)),
    (ConfigError, "an image is torch.float32",
     lambda path: export(network(), path / "net.pt2", images=[torch.zeros(5, 5, 3)])),
    (ExportError, "Constraints violated", lambda path: export(with_layer(Fixed()), path / "net.pt2")),
    (ExportError, "cannot write", lambda path: export(network(), path / "nowhere" / "net.pt2")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "call"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_what_cannot_be_exported_is_said_and_leaves_nothing(kind, message, call, tmp_path):
    with pytest.raises(kind) as caught:
        call(tmp_path)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_leaves_what_was_there_before(tmp_path, here, monkeypatch):
    path = tmp_path / "net.pt2"
    path.write_text("before")
    other = network()
    with torch.no_grad():
        other.fc.bias += 1
    monkeypatch.setattr("residuum.export.write._plain", lambda model: other)
    monkeypatch.setattr("residuum.export.write.folded_network", lambda *args, **how: network())
    with pytest.raises(ExportError, match="logits differ from the network's by"):
        export(network(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_text() == "before"


def test_the_ending_of_the_file_says_the_form_on_the_command_line_too(tmp_path, here, command, refused):
    residuum.save(network(), tmp_path / "net.safetensors")
    source = tmp_path / "net.safetensors"
    result = command("export", source, "--input", "normalized", "--out", tmp_path / "net.pt2")
    assert result.code == 0, result.err
    assert (tmp_path / "net.pt2").exists()
    assert "must end in .onnx" in refused("export", source, "--to", "onnx", "--out", tmp_path / "other.pt2")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--to", "pt2", "--server", "triton"), "not what triton loads"),
        (("--to", "openvino", "--precision", "fp32", "--server", "triton"), "cannot ask OpenVINO for"),
    ],
)
def test_a_server_that_cannot_run_the_file_is_refused_before_it_is_exported(line, says, here, refused, monkeypatch):
    monkeypatch.setattr("residuum.export.command.export", None)
    assert says in refused("export", "cifar_resnet20", *line)


@pytest.mark.parametrize("kind", ["pixels", "normalized"])
def test_another_image_size_is_what_images_are_scaled_to_everywhere(kind, tmp_path, here, command):
    model = network()
    residuum.save(model, tmp_path / "net.safetensors", classes=list("abcde"), preprocessing=model.preprocessing)
    (tmp_path / "photographs").mkdir()
    for number in range(2):
        pixels = torch.randint(0, 256, (50, 61 + number, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photographs" / f"{number}.png")
    result = command(
        "export", tmp_path / "net.safetensors", "--input", kind, "--image-size", 24, 48, "--out", tmp_path / "net.pt2",
        "--images", tmp_path / "photographs",
    )  # fmt: skip
    assert result.code == 0, result.err
    file = opened(tmp_path / "net.pt2")
    assert (file.image_size, file.preprocessing) == ((24, 48), replace(model.preprocessing, image_size=(24, 48)))
    model.preprocessing = file.preprocessing
    images = sorted((tmp_path / "photographs").iterdir())
    found = list(predict(tmp_path / "net.pt2", images, top=5))
    for prediction, wanted in zip(found, predict(model, images, top=5, precision="fp32"), strict=True):
        assert dict(prediction.classes) == pytest.approx(dict(wanted.classes), rel=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_integers_are_not_measured_at_another_image_size_or_for_a_file_that_cannot_be(tmp_path, here, refused):
    model = network()
    residuum.save(model, tmp_path / "net.safetensors", classes=list("abcde"), preprocessing=model.preprocessing)
    line = ("export", tmp_path / "net.safetensors", "--to", "onnx", "--int8", "--out", tmp_path / "net.onnx")
    height, width = model.preprocessing.image_size
    said = refused(*line, "--image-size", height + 8, width)
    assert f"int8 is measured on images of {height}x{width}" in said
    os.mkfifo(tmp_path / "net.onnx")
    assert "net.onnx' is no regular file; choose another" in refused(*line)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_a_file_behind_a_link_is_replaced_and_a_pipe_is_refused(tmp_path, here):
    (tmp_path / "store").mkdir()
    (tmp_path / "net.pt2").symlink_to("store/net.pt2")
    export(network(), tmp_path / "net.pt2", input="normalized")
    assert (tmp_path / "net.pt2").is_symlink()
    assert opened(tmp_path / "store" / "net.pt2").takes == "normalized"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt2", "net.pt2.proof.json", "store"]
    for name in ("pipe.pt2", "other.pt2.proof.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ExportError, match=f"{name}' is no regular file; choose another"):
            export(network(), tmp_path / name.removesuffix(".proof.json"), input="normalized")
        assert (tmp_path / name).is_fifo()
    assert not (tmp_path / "other.pt2").exists()


def test_a_folder_named_by_a_dot_gives_the_file_its_name(tmp_path, here, command, monkeypatch):
    (tmp_path / "animals").mkdir()
    residuum.save(network(), tmp_path / "animals" / "weights.safetensors")
    monkeypatch.chdir(tmp_path / "animals")
    result = command("export", ".", "--to", "pt2", "--input", "normalized")
    assert result.code == 0, result.err
    assert (tmp_path / "animals" / "animals.pt2").is_file()
