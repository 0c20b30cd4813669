from torchvision.ops import StochasticDepth
from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
for i, block in enumerate(block for stage in model.resnet.encoder.stages for block in stage.layers):
    block.layer.append(StochasticDepth(0.1 * i / 15, "row"))
