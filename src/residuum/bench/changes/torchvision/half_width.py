from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class HalfWidth(ResNet):
    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = 32
            self.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(32)
        return super()._make_layer(block, planes // 2, *args, **kwargs)


model = HalfWidth(Bottleneck, [3, 4, 6, 3])
model.fc = nn.Linear(1024, 1000)
