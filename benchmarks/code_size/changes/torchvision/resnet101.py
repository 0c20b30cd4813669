import torchvision

model = torchvision.models.resnet101()
