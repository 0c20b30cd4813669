from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
