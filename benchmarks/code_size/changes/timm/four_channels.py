import timm

model = timm.create_model("resnet50", in_chans=4)
