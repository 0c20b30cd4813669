"""OpenVINO's files scale images as evaluation does, whatever the network computes in."""

import pytest
import torch
from tests.networks import relative, scramble
from torch.nn.functional import interpolate

from residuum import Preprocessing, create
from residuum.data.preparing import evaluation_transform
from residuum.errors import DeviceError, ExportError
from residuum.export import export, proof
from residuum.export.inputs import Input

pytest.importorskip("openvino")

import numpy as np
from openvino import Model
from openvino import opset13 as ops

from residuum.export.openvino import with_input, write
from residuum.runtimes.exported import PIXELS, opened
from residuum.runtimes.openvino import OpenVinoSession, read_model, up_to

SIZES = ((1, 1), (3, 500), (20, 24), (33, 47), (64, 64), (150, 90), (375, 500), (1200, 900))


def drawn(height, width, channels, noisy):
    """Noise, or a smooth picture, in which many neighbours are alike."""
    if noisy:
        return torch.randint(0, 256, (1, height, width, channels), dtype=torch.uint8)
    small = 255 * torch.rand(1, channels, max(height // 16, 1), max(width // 16, 1))
    return interpolate(small, (height, width), mode="bilinear").round().to(torch.uint8).permute(0, 2, 3, 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("interpolation", "size", "crop", "channels", "order"),
    [
        ("bilinear", (20, 24), 0.875, 3, "rgb"),
        ("bilinear", (96, 96), 0.0, 3, "bgr"),
        ("bilinear", (8, 8), 1.0, 1, "rgb"),
        ("bicubic", (48, 40), 0.9, 3, "bgr"),
        ("bicubic", (20, 20), 0.0, 1, "rgb"),
    ],
)
def test_scaled_pixels_are_those_of_evaluation(interpolation, size, crop, channels, order, precision, tmp_path):
    torch.manual_seed(0)
    how = Preprocessing(channels, size, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], crop, interpolation)
    images = ops.parameter([-1, channels, *size], np.float32)
    network = Model([ops.relu(images)], [images], "nothing")
    write(with_input(network, Input("image", channels, size, how, order)), {}, tmp_path / "net.xml")
    try:
        scale = OpenVinoSession(up_to(read_model(tmp_path / "net.xml"), PIXELS), precision=precision)
    except DeviceError as error:
        pytest.skip(str(error))
    transform, other, every = evaluation_transform(how), 0, 0
    for height, width in SIZES:
        for noisy in (False, True):
            given = torch.cat([drawn(height, width, channels, noisy) for _ in range(2)])
            wanted = torch.stack([transform(image) for image in given.permute(0, 3, 1, 2)])
            apart = (scale((given.flip(3) if order == "bgr" else given).contiguous()).int() - wanted.int()).abs()
            assert apart.max() <= 1, (height, width)
            other, every = other + int((apart > 0).sum()), every + apart.numel()
    assert other / every < 1e-3


def test_a_network_for_which_bf16_is_too_coarse_is_proved_and_run_in_fp32_where_that_is_asked_for(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(proof.TOLERANCE, "bf16", 1e-9)
    torch.manual_seed(0)
    model = create("resnet18", depths=(1, 1, 1, 1), width=0.25, num_classes=5).eval()
    scramble(model)
    model.preprocessing = Preprocessing(3, (32, 40), (0.5,) * 3, (0.2,) * 3, 0.875)
    try:
        found = export(model, tmp_path / "net.xml", input="pixels")
        assert found.default is None  # a processor without bf16
    except ExportError as error:
        assert "in bf16, which the runtime takes here by itself" in str(error)
        assert "with precision fp32" in str(error)
        assert not list(tmp_path.iterdir())
    found = export(model, tmp_path / "net.xml", input="pixels", precision="fp32")
    assert found.default is None
    file = opened(tmp_path / "net.xml")
    assert (file.note["precision"], file.run.precision) == ("fp32", "fp32")
    images = torch.randint(0, 256, (3, 32, 40, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.2)
    assert relative(file(images), wanted) < 1e-5
