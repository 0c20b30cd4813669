import residuum

model = residuum.create("resnet50", preact=True)
