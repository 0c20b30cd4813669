import residuum

model = residuum.create("resnet50", downsample="avg")
