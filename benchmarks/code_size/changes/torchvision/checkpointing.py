import torchvision
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

model = torchvision.models.resnet50()
apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, torchvision.models.resnet.Bottleneck))
