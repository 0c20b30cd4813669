import timm

model = timm.create_model("resnet50", avg_down=True)
