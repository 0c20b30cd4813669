import timm

model = timm.create_model("resnetv2_50", preact=False, width_factor=0.5)
