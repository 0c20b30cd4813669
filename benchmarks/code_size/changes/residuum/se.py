import residuum

model = residuum.create("resnet50", attention="se")
