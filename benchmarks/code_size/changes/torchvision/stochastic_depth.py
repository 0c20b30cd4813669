import torchvision
from torch import nn

model = torchvision.models.resnet50()
for i, block in enumerate([*model.layer1, *model.layer2, *model.layer3, *model.layer4]):
    block.bn3 = nn.Sequential(block.bn3, torchvision.ops.StochasticDepth(0.1 * i / 15, "row"))
