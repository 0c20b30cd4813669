from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class HalfBottleneck(Bottleneck):
    expansion = 2


model = ResNet(HalfBottleneck, [3, 4, 6, 3], width_per_group=32)
model.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
model.bn1 = nn.BatchNorm2d(32)
model.layer1[0].conv1 = nn.Conv2d(32, 32, 1, bias=False)
model.layer1[0].downsample[0] = nn.Conv2d(32, 128, 1, bias=False)
