import torchvision
from torch import nn

model = torchvision.models.resnet50()
model.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
