"""Against timm in the same process: logits of every knob; names and shapes are compared with those of all peers."""

import pytest
import torch

from residuum import PRESETS, create
from tests.networks import relative, scramble

timm = pytest.importorskip("timm")
SHARED = sorted(set(PRESETS) & set(timm.list_models(module="resnet")))


def test_most_of_timms_residual_networks_are_presets():
    assert len(SHARED) >= 70


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet34d", (97, 113)),  # deep stem, averaged shortcut
        ("resnet26t", (97, 113)),  # tiered stem
        ("resnet50c", (64, 64)),  # deep stem, convolved shortcut
        ("seresnet18", (97, 113)),
        ("ecaresnetlight", (97, 113)),
        ("resnetblur18", (97, 113)),
        pytest.param("resnetrs50", (97, 113), marks=pytest.mark.slow),  # strided convolution in the stem, SE of 1/4
        pytest.param("seresnext26t_32x4d", (64, 64), marks=pytest.mark.slow),
        pytest.param("resnet50_gn", (64, 64), marks=pytest.mark.slow),
        pytest.param("resnetblur50d", (64, 64), marks=pytest.mark.slow),
        # timm itself fails where the size is odd: its average pool rounds down
        pytest.param("resnetaa50d", (64, 64), marks=pytest.mark.slow),
        pytest.param("resnetaa34d", (96, 160), marks=pytest.mark.slow),
    ],
)
def test_same_logits(name, size):
    torch.manual_seed(0)
    peer = timm.create_model(name, num_classes=10).eval()
    scramble(peer)
    ours = create(name, num_classes=10).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert relative(ours(x), peer(x)) <= 1e-5


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["resnet26d", "resnetblur18", "resnet50c"])
def test_dilation_is_timms(name, output_stride):
    torch.manual_seed(0)
    peer = timm.create_model(name, num_classes=10, output_stride=output_stride).eval()
    scramble(peer)
    ours = create(name, num_classes=10, output_stride=output_stride).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    x = torch.randn(1, 3, 75, 64)
    with torch.inference_mode():
        assert relative(ours(x), peer(x)) <= 1e-5


def test_anti_aliasing_by_average_works_at_odd_sizes():
    model = create("resnetaa50", width=0.25, num_classes=10).eval()
    sizes = [tuple(f.shape[2:]) for f in model.features(torch.randn(1, 3, 97, 113))]
    assert sizes == [(25, 29), (13, 15), (7, 8), (4, 4)]
