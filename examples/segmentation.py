"""A U-Net of segmentation-models-pytorch on a network of residuum, taught to find bright squares.

pip install segmentation-models-pytorch
"""

import segmentation_models_pytorch as smp
import torch

import residuum


def encoder(architecture="resnet18d", weights=None, depth=5, output_stride=32, **fields):
    """What segmentation-models-pytorch calls with the depth and the output stride that its model wants."""
    body = residuum.create(architecture, num_classes=0, output_stride=output_stride, weights=weights, **fields)
    return residuum.Encoder(body, depth)


# From here on it is an encoder like any other: `params` are the arguments of the function above, such as
# {"architecture": "resnet50", "weights": "torchvision:resnet50.IMAGENET1K_V2"}.
smp.encoders.encoders["residuum"] = {"encoder": encoder, "params": {"width": 0.25}, "pretrained_settings": {}}


def images_and_masks(count, side=64):
    """Noise (N, 3, H, W) with a brighter square in each, and where the square is (N, 1, H, W)."""
    images, masks = torch.rand(count, 3, side, side), torch.zeros(count, 1, side, side)
    for mask, (top, left) in zip(masks, torch.randint(0, side // 2, (count, 2)).tolist(), strict=True):
        mask[:, top : top + side // 2, left : left + side // 2] = 1
    return images + 0.5 * masks, masks


def main():
    torch.manual_seed(0)
    model = smp.Unet("residuum", encoder_weights=None, decoder_channels=(64, 32, 16, 16, 8))
    dice = smp.losses.DiceLoss("binary")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        images, masks = images_and_masks(8)
        loss = dice(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, masks = images_and_masks(8)
    with torch.inference_mode():
        found = model.eval()(images).sigmoid() > 0.5
    overlap = (found & masks.bool()).sum() / (found | masks.bool()).sum()
    print(f"intersection over union {overlap:.2f}")
    residuum.save(model.encoder.body, "encoder.safetensors")


if __name__ == "__main__":
    main()
