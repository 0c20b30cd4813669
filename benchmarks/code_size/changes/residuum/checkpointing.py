import residuum

model = residuum.create("resnet50")
residuum.recompute(model, "block")
