import torchvision
from torch import nn

model = torchvision.models.resnet50()
for block in [*model.layer1, *model.layer2, *model.layer3, *model.layer4]:
    channels = block.bn3.num_features
    block.bn3 = nn.Sequential(block.bn3, torchvision.ops.SqueezeExcitation(channels, channels // 16))
