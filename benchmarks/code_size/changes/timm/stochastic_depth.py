import timm

model = timm.create_model("resnet50", drop_path_rate=0.1)
