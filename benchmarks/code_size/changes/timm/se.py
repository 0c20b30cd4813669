import timm

model = timm.create_model("seresnet50")
