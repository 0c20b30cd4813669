from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
for stage in model.resnet.encoder.stages[1:]:
    shortcut = stage.layers[0].shortcut
    shortcut.convolution.stride = (1, 1)
    stage.layers[0].shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), shortcut)
