"""The network: `blocks.py` has what a stage is made of, `resnet.py` puts stem, stages and head together."""
