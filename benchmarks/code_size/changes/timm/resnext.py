import timm

model = timm.create_model("resnext50_32x4d")
