from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class PreActBottleneck(Bottleneck):
    def __init__(self, inplanes, planes, stride=1, downsample=None, *args, **kwargs):
        super().__init__(inplanes, planes, stride, downsample and downsample[:1], *args, **kwargs)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.bn3 = nn.BatchNorm2d(planes)

    def forward(self, x):
        h = self.relu(self.bn1(x))
        identity = x if self.downsample is None else self.downsample(h)
        h = self.conv2(self.relu(self.bn2(self.conv1(h))))
        return identity + self.conv3(self.relu(self.bn3(h)))


model = ResNet(PreActBottleneck, [3, 4, 6, 3])
model.bn1 = model.relu = nn.Identity()
model.layer4.append(nn.Sequential(nn.BatchNorm2d(2048), nn.ReLU(inplace=True)))
