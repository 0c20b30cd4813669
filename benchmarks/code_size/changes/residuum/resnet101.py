import residuum

model = residuum.create("resnet101")
