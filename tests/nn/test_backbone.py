"""Backbones for torchvision's detectors and segmenters."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from residuum import ConfigError, Encoder, Pyramid, Segmentation, create, freeze

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample.tar"
SMALL = {"width": 0.25, "num_classes": 0}


def made():
    """Four images, each with a bright square in its middle."""
    torch.manual_seed(0)
    images = 0.2 * torch.rand(4, 3, 96, 96)
    images[:, :, 24:72, 24:72] += 0.6
    return images


def photographs():
    """Four photographs, 96x96."""
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"needs {PHOTOGRAPHS.name}, which is not there")
    images = []
    with tarfile.open(PHOTOGRAPHS) as archive:
        for member in archive:
            if member.name.lower().endswith((".jpg", ".jpeg")) and len(images) < 4:
                data = np.frombuffer(archive.extractfile(member).read(), np.uint8).copy()
                image = decode_image(torch.from_numpy(data), ImageReadMode.RGB)[None] / 255
                images.append(nn.functional.interpolate(image, (96, 96), mode="bilinear", antialias=True))
    return torch.cat(images)


def improves(model, losses, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    values = []
    for _ in range(steps):
        torch.manual_seed(1)  # the same anchors and proposals are sampled each time
        loss = losses()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return min(values[-3:]) < 0.9 * values[0]


@pytest.mark.slow
@pytest.mark.parametrize("images", [made, photographs])
def test_faster_rcnn_trains_on_our_backbone(images):
    pixels = images()
    torch.manual_seed(0)
    backbone = Pyramid(freeze(create("resnet18", **SMALL), stages=1), out_channels=32)
    detector = FasterRCNN(backbone, num_classes=2, min_size=96, max_size=96, rpn_post_nms_top_n_train=100)
    box = torch.tensor([[24.0, 24.0, 72.0, 72.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1])} for _ in pixels]
    frozen = backbone.body.layer1[0].conv1.weight.clone()
    assert improves(detector, lambda: sum(detector(list(pixels), targets).values()), 10)
    assert torch.equal(frozen, backbone.body.layer1[0].conv1.weight)
    assert set(detector.eval()(list(pixels))[0]) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("images", [made, photographs])
def test_deeplab_trains_on_our_backbone(images):
    pixels = images()
    torch.manual_seed(0)
    backbone = Segmentation(create("resnet18", **SMALL, output_stride=8))
    segmenter = DeepLabV3(backbone, DeepLabHead(backbone.channels, 2))
    mask = torch.zeros(4, 96, 96, dtype=torch.long)
    mask[:, 24:72, 24:72] = 1
    segmenter.train()
    assert improves(segmenter, lambda: nn.functional.cross_entropy(segmenter(pixels)["out"], mask), 8)
    assert segmenter(pixels)["out"].shape == (4, 2, 96, 96)


def test_a_pyramid_takes_the_stages_that_are_asked_for():
    pyramid = Pyramid(create("resnet26", **SMALL), out_channels=16, levels=[2, 4])
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (1, 16, 8, 8),
        "1": (1, 16, 2, 2),
        "pool": (1, 16, 1, 1),
    }


@pytest.mark.parametrize(
    ("kind", "heads"), [(RetinaNet, {"classification", "bbox_regression"}), (FCOS, {"classification", "bbox_ctrness"})]
)
def test_detectors_of_one_stage_take_a_pyramid_with_p6_and_p7(kind, heads):
    pyramid = Pyramid(create("resnet18", **SMALL), out_channels=32, levels=[2, 3, 4], extra="p6p7")
    images = made()
    assert list(pyramid(images)) == ["0", "1", "2", "p6", "p7"]
    detector = kind(pyramid, num_classes=2, min_size=96, max_size=96)
    box = torch.tensor([[24.0, 24.0, 72.0, 72.0]])
    losses = detector(list(images), [{"boxes": box, "labels": torch.tensor([1])}] * 4)
    assert heads <= set(losses)
    sum(losses.values()).backward()
    assert pyramid.body.conv1.weight.grad.abs().sum() > 0


def test_mask_r_cnn_takes_a_pyramid():
    detector = MaskRCNN(
        Pyramid(create("resnet18", **SMALL), out_channels=32), num_classes=2, min_size=96, max_size=96,
        rpn_post_nms_top_n_train=50,
    )  # fmt: skip
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 24:72, 24:72] = 1
    target = {"boxes": torch.tensor([[24.0, 24.0, 72.0, 72.0]]), "labels": torch.tensor([1]), "masks": mask}
    assert detector(list(made()[:1]), [target])["loss_mask"] > 0


def test_what_is_to_come_on_top_is_refused_where_it_is_not_known():
    with pytest.raises(ConfigError, match="extra is 'p8'; it must be one of pool, p6p7"):
        Pyramid(create("resnet18", **SMALL), extra="p8")


# -- encoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "strides"), [({}, [1, 2, 4, 8, 16, 32]), ({"output_stride": 8}, [1, 2, 4, 8, 8, 8])]
)
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_an_encoder_gives_the_image_and_a_map_for_each_stride(fields, strides, depth):
    encoder = Encoder(create("resnet18d", **SMALL, **fields), depth)
    maps = encoder(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 64 // stride, 64 // stride)
        for channels, stride in zip(encoder.out_channels, strides[: depth + 1], strict=True)
    ]
    assert encoder.output_stride == strides[depth]


def test_an_encoder_refuses_what_its_network_is_not_made_for():
    with pytest.raises(ConfigError, match="map 1 has stride 2, and this network's has 1"):
        Encoder(create("cifar_resnet20"), 4)
    with pytest.raises(ConfigError, match="maps for 1 to 5"):
        Encoder(create("resnet18", **SMALL), 6)
    encoder = Encoder(create("resnet18", **SMALL))
    encoder.set_in_channels(3)
    encoder.make_dilated(32)
    with pytest.raises(ConfigError, match="create the network with in_channels=4"):
        encoder.set_in_channels(4)
    with pytest.raises(ConfigError, match="create the network with output_stride=8"):
        encoder.make_dilated(8)


@pytest.mark.parametrize("levels", [[], [-1], [5], [2, 1], [1, 1]])
def test_levels_that_are_not_there_are_refused(levels):
    with pytest.raises(ConfigError, match="rising numbers from 0 to 4"):
        Pyramid(create("resnet18", **SMALL), levels=levels)
