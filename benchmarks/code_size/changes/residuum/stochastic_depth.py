import residuum

model = residuum.create("resnet50", stochastic_depth=0.1)
