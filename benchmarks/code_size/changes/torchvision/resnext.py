import torchvision

model = torchvision.models.resnext50_32x4d()
