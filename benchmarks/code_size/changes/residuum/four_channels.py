import residuum

model = residuum.create("resnet50", in_channels=4)
