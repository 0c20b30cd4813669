import residuum

model = residuum.create("resnet50", width=0.5)
