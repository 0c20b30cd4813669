from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000, num_channels=4)
model = ResNetForImageClassification(config)
