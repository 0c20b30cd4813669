import residuum

model = residuum.create("resnet50", stem="conv3", stem_pool="none")
