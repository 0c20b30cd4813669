import timm

model = timm.create_model("resnet101")
