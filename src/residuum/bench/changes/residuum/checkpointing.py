import residuum
from residuum.memory import recompute

model = residuum.create("resnet50")
recompute(model, "block")
