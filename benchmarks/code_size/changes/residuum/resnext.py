import residuum

model = residuum.create("resnext50_32x4d")
