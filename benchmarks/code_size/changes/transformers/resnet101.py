from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000, depths=[3, 4, 23, 3])
model = ResNetForImageClassification(config)
