from torchvision.ops import SqueezeExcitation
from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
for channels, stage in zip(config.hidden_sizes, model.resnet.encoder.stages, strict=True):
    for block in stage.layers:
        block.layer.append(SqueezeExcitation(channels, channels // 16))
