import timm

model = timm.create_model("resnetv2_50")
