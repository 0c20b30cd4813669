import torchvision

model = torchvision.models.resnet50()
