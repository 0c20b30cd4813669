from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(num_labels=1000, embedding_size=32, hidden_sizes=[128, 256, 512, 1024])
model = ResNetForImageClassification(config)
