"""Training steps compiled by `torch.compile`."""

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from residuum.errors import ConfigError, quoted


def compiled(network: nn.Module) -> nn.Module:
    """The network as compiled steps call it; its parameters, and what evaluates or saves it, stay the network's.

    Each size of images and chunks is compiled when it first comes, and no more than torch's own limit of them.
    """
    return cast(nn.Module, torch.compile(network, dynamic=False))


@functools.cache
def need_compiler(device: torch.device) -> None:
    """Raise `ConfigError` where torch's compiler cannot work here, before a run begins."""
    try:
        function = cast(Callable[[torch.Tensor], torch.Tensor], torch.compile(torch.sin))
        function(torch.zeros(2, device=device))
    except Exception as error:  # torch's own, of many kinds
        lines = (line.strip() for line in str(error).splitlines())
        why = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
        raise ConfigError(
            f"training steps cannot be compiled here: {quoted(why)}; torch.compile needs a C++ compiler; leave out "
            "--compile"
        ) from None
