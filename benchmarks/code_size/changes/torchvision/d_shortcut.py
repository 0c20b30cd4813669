import torchvision
from torch import nn

model = torchvision.models.resnet50()
for stage in (model.layer2, model.layer3, model.layer4):
    stage[0].downsample[0].stride = (1, 1)
    stage[0].downsample.insert(0, nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
