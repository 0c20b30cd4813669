import timm

model = timm.create_model("resnet50")
model.set_grad_checkpointing()
