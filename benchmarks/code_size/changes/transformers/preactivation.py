from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification


class PreActLayer(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.convolutions = nn.ModuleList(layer.convolution for layer in block.layer)
        self.normalizations = nn.ModuleList(nn.BatchNorm2d(conv.in_channels) for conv in self.convolutions)
        self.shortcut = getattr(block.shortcut, "convolution", None)

    def forward(self, x):
        h = self.normalizations[0](x).relu_()
        x = x if self.shortcut is None else self.shortcut(h)
        h = self.convolutions[0](h)
        h = self.convolutions[1](self.normalizations[1](h).relu_())
        return x + self.convolutions[2](self.normalizations[2](h).relu_())


config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
for stage in model.resnet.encoder.stages:
    stage.layers = nn.Sequential(*map(PreActLayer, stage.layers))
model.resnet.embedder.embedder.normalization = model.resnet.embedder.embedder.activation = nn.Identity()
model.resnet.pooler = nn.Sequential(nn.BatchNorm2d(2048), nn.ReLU(inplace=True), model.resnet.pooler)
