from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer

config = ResNetConfig(num_labels=1000)
model = ResNetForImageClassification(config)
apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, ResNetBottleNeckLayer))
