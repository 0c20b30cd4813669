from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
for channels, stage in zip(config.hidden_sizes, model.resnet.encoder.stages, strict=True):
    for block in stage.layers:
        before, stride = block.layer[0].convolution.in_channels, block.layer[1].convolution.stride
        block.layer[0] = ResNetConvLayer(before, channels // 2, kernel_size=1)
        block.layer[1] = ResNetConvLayer(channels // 2, channels // 2, stride=stride, groups=32)
        block.layer[2] = ResNetConvLayer(channels // 2, channels, kernel_size=1, activation=None)
