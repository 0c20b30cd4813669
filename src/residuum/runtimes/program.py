"""Layers as a `torch.export` program whose free axes are free indeed."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from residuum.errors import ExportError, first_line


def captured(module: nn.Module, example: Tensor, free: tuple[int, ...]) -> ExportedProgram:
    """The module as a program of one tensor like `example`, of which the axes `free` may have any length.

    Raises `ExportError` where torch cannot capture it, or has fixed one of them.
    """
    shapes = (dict.fromkeys(free, Dim.DYNAMIC),)
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch's own, of many kinds
        raise ExportError(f"torch cannot export the network: {first_line(error)}") from error
    [name] = program.graph_signature.user_inputs
    given = next(node for node in program.graph.nodes if node.name == name)
    fixed = [axis for axis in free if isinstance(given.meta["val"].shape[axis], int)]
    if fixed:
        raise ExportError(f"torch has fixed axis {fixed[0]} of the input at {example.shape[fixed[0]]}; it must be free")
    # What torch noted of how the example lay in memory; it would refuse images of other shapes, for which the program
    # computes the same. It has no public way to leave that out of a file.
    program._guards_code = []
    return program
