from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
model.resnet.embedder.embedder.convolution = nn.Conv2d(3, 64, 3, padding=1, bias=False)
model.resnet.embedder.pooler = nn.Identity()
