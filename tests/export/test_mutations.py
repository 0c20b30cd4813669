"""Exports that are wrong in one thing each: the proof names it and its size, and leaves nothing."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.networks import small_to_export
from torch import nn

from residuum.errors import ConfigError, ExportError
from residuum.export import export, inputs, onnx, proof, write
from residuum.inference.optimize import folded_network
from residuum.runtimes.exported import opened

LOGITS = r"logits differ from the network's by [\d.e-]+ of the largest, more than 1e-05; nothing is left"
PIXELS = (
    r"preprocessing differs from the network's: by \d+ grey levels at most, in [\d.]+% of the pixels.*nothing is left"
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Made-up images of up to 200 pixels a side: they tell as well as a photograph does."""

    def made(given):
        return [images for images in proof.made_images(given) if max(images.shape[1:3]) <= 200]

    monkeypatch.setattr(write, "made_images", made)


def refused(path, message, **how):
    """Export where something was made wrong: it is refused with a message, and nothing is there."""
    with pytest.raises(ExportError) as caught:
        export(how.pop("model", None) or small_to_export(), path, **how)
    assert re.search(message, str(caught.value)), caught.value
    assert len(str(caught.value)) <= 500
    assert list(path.parent.iterdir()) == []


# -- scaling and normalising -------------------------------------------------------------------------------------------


def swapped(patch):
    plain = inputs.Scale.forward
    patch.setattr(inputs.Scale, "forward", lambda self, images: plain(self, images).flip(1))


def half_and_half(patch):
    plain = inputs.Normal.__init__
    other = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    patch.setattr(inputs.Normal, "__init__", lambda self, how: plain(self, replace(how, **other)))


def scaled_by(**how):
    def change(patch):
        def resized(x, height, width, interpolation):
            return F.interpolate(x.float(), (height, width), **how).round().clamp(0, 255).to(torch.uint8)

        patch.setattr(inputs, "resized", resized)

    return change


def stretched(patch):
    def forward(self, images):
        return inputs.resized(images.permute(0, 3, 1, 2), self.height, self.width, "bilinear")

    patch.setattr(inputs.Scale, "forward", forward)


def beside(patch):
    plain = inputs.middle
    patch.setattr(inputs, "middle", lambda over: torch.sym_max(plain(over) - 1, 0))


SCALING = {
    "channels swapped": swapped,
    "no antialias": scaled_by(mode="bilinear"),
    "bicubic for bilinear": scaled_by(mode="bicubic", antialias=True),
    "stretched for cropped": stretched,
    "cropped a pixel beside": beside,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", SCALING.values(), ids=SCALING)
def test_a_program_that_scales_otherwise_is_refused(change, tmp_path, here, monkeypatch):
    change(monkeypatch)
    refused(tmp_path / "net.pt2", LOGITS)


@pytest.mark.slow
def test_a_program_that_normalises_otherwise_is_refused(tmp_path, here, monkeypatch):
    half_and_half(monkeypatch)
    refused(tmp_path / "net.pt2", LOGITS, input="pixels")


@pytest.mark.slow
def test_an_onnx_file_that_scales_otherwise_is_refused_by_its_pixels(tmp_path, here, monkeypatch):
    pytest.importorskip("onnxruntime")
    stretched(monkeypatch)
    refused(tmp_path / "net.onnx", PIXELS)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["bicubic", "a pixel off"])
def test_an_openvino_file_that_scales_otherwise_is_refused_by_its_pixels(change, tmp_path, here, monkeypatch):
    pytest.importorskip("openvino")
    along = write.openvino._along

    def changed(x, axis, length, first, count, *, cubic):
        from openvino import opset13 as ops

        first = ops.add(first, np.int32(1)) if change == "a pixel off" else first
        return along(x, axis, length, first, count, cubic=change == "bicubic")

    monkeypatch.setattr(write.openvino, "_along", changed)
    refused(tmp_path / "net.xml", PIXELS)


# -- the network -------------------------------------------------------------------------------------------------------


class Draws(nn.Module):
    """Dropout as in training, whatever it is told."""

    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


def network_with(change):
    """What exports, changed after it was folded."""

    def folded(*args, **how):
        net = folded_network(*args, **how)
        change(net)
        return net

    return folded


def perturbed(net):
    generator = torch.Generator().manual_seed(0)
    for parameter in net.fc.parameters():
        parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))


def without_relu(net):
    block = net.stages[0][0]
    name, _ = next((name, part) for name, part in block.named_modules() if isinstance(part, nn.ReLU))
    block.set_submodule(name, nn.Identity())


def drawing(net):
    net.fc = nn.Sequential(Draws(), net.fc)


NETWORKS = {
    "weights off by 1 %": (perturbed, LOGITS),
    "a block without ReLU": (without_relu, LOGITS),
    "dropout as in training": (drawing, "logits"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_that_computes_otherwise_is_refused(change, message, tmp_path, here, monkeypatch):
    monkeypatch.setattr(write, "folded_network", network_with(change))
    refused(tmp_path / "net.pt2", message, input="pixels")


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_batch_that_is_fixed_is_refused(tmp_path, here, monkeypatch):
    plain = inputs.Input.example.fget
    monkeypatch.setattr(inputs.Input, "example", property(lambda self: plain(self)[:1]))
    refused(tmp_path / "net.pt2", "torch (cannot export|has fixed axis 0)", input="pixels")
    monkeypatch.setattr(inputs.Input, "free", ())
    refused(tmp_path / "net.pt2", r"the file cannot be run: .*size\(\)\[0\] == 1", input="pixels")


@pytest.mark.slow
def test_a_height_and_width_that_are_fixed_are_refused(tmp_path, here, monkeypatch):
    monkeypatch.setattr(inputs.Input, "free", (0,))
    refused(tmp_path / "net.pt2", r"the file cannot be run: .*size\(\)\[1\] == 65")


# -- edits of the model, and of what it says ---------------------------------------------------------------------------


@pytest.fixture
def edited(monkeypatch):
    """Let a function edit ONNX models and their notes before they are written."""
    pytest.importorskip("onnxruntime")
    plain = onnx.write

    def by(edit):
        def written(model, note, path):
            note = dict(note)
            edit(model, note)
            plain(model, note, path)

        monkeypatch.setattr(onnx, "write", written)

    return by


def with_other_edges(model, note):
    [resize] = [node for node in model.graph.node if node.op_type == "Resize"]
    [exclude] = [attribute for attribute in resize.attribute if attribute.name == "exclude_outside"]
    assert exclude.i == 1
    exclude.i = 0


def with_batch_of_one(model, note):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def with_other_labels(model, note):
    note["classes"] = note["classes"][::-1]


EDITS = {
    "edges of a Resize": (with_other_edges, "image", PIXELS),
    "a batch of one": (with_batch_of_one, "normalized", "the file cannot be run: .*index: 0 Got: 3 Expected: 1"),
    "labels": (
        with_other_labels,
        "pixels",
        r"says of itself differs .* in 1 of \d+ entries: 'classes'; nothing is left",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "kind", "message"), EDITS.values(), ids=EDITS)
def test_an_onnx_model_that_is_edited_is_refused(edit, kind, message, tmp_path, here, edited):
    edited(edit)
    model = small_to_export()
    model.preprocessing = replace(model.preprocessing, crop=0.0)  # which cuts off no edges
    refused(tmp_path / "net.onnx", message, model=model, input=kind)


# -- runtimes and disks ------------------------------------------------------------------------------------------------


def test_nearest_is_refused_for_images_in_onnx_before_any_work(tmp_path):
    model = small_to_export()
    model.preprocessing = replace(model.preprocessing, interpolation="nearest")
    with pytest.raises(ConfigError, match="scales by nearest, which ONNX Runtime rounds otherwise; export to openvino"):
        export(model, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_openvino_scales_onnx_wrongly_so_it_is_refused_and_the_proof_finds_it_too(tmp_path, here, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    from residuum.runtimes.openvino import OpenVinoSession

    path = tmp_path / "net.onnx"
    export(small_to_export(), path)
    with pytest.raises(ExportError, match="OpenVINO ignores antialias in ONNX .*--to openvino"):
        opened(path, runtime="openvino")
    for file in tmp_path.iterdir():
        file.unlink()
    monkeypatch.setattr(
        proof, "opened", lambda path: replace(opened(path), run=OpenVinoSession(path, precision="fp32"))
    )
    refused(path, LOGITS)


@pytest.mark.slow
def test_an_onnx_file_is_the_same_bytes_each_time_passes_the_checker_and_has_the_opset_asked_for(tmp_path, here):
    pytest.importorskip("onnxruntime")
    onnx_library = pytest.importorskip("onnx")
    contents = {}
    for name, opset, kind in (("a", 18, "normalized"), ("b", 20, "image"), ("c", 21, "pixels"), ("d", 20, "image")):
        path = tmp_path / f"{name}.onnx"
        export(small_to_export(), path, opset=opset, input=kind)
        onnx_library.checker.check_model(str(path), full_check=True)
        assert {entry.domain: entry.version for entry in onnx_library.load(path).opset_import}[""] == opset
        contents[name] = path.read_bytes()
    assert contents["b"] == contents["d"]
    assert not list(tmp_path.glob("*.data"))


FULL = """
import sys, resource, signal, torch
from tests.networks import small_to_export
from residuum.errors import ExportError
from residuum.export import export
model = small_to_export()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    export(model, sys.argv[1], input="normalized")
except ExportError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".pt2", ".onnx", ".xml"])
def test_a_full_disk_leaves_nothing(ending, tmp_path):
    pytest.importorskip({".pt2": "torch", ".onnx": "onnxruntime", ".xml": "openvino"}[ending])
    path = tmp_path / "out" / f"net{ending}"
    path.parent.mkdir()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert "cannot write" in done.stdout, done.stdout + done.stderr
    assert list(path.parent.iterdir()) == []
