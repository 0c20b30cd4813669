import residuum

model = residuum.create("resnet50")
