"""Starting from weights: how they get into the network of a recipe, and which parts of it learn.

A run reads its weights once, when it begins. From then on they are in its state, and the recipe keeps where they were
from and their digest.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from residuum.errors import WeightsError, quoted
from residuum.nn.freezing import freeze_parts, unfreeze
from residuum.nn.resnet import ResNet
from residuum.train.groups import rates_of
from residuum.train.recipe import Recipe
from residuum.train.schedules import steps_of
from residuum.units import counted
from residuum.weights.checkpoint import Checkpoint, fit, some
from residuum.weights.detection import fitting_presets
from residuum.weights.files import digest, read_checkpoint
from residuum.weights.hubs import is_reference


def read_start(recipe: Recipe) -> tuple[Recipe, Checkpoint | None]:
    """The weights that a recipe starts from, and the recipe with their digest and a path that is whole.

    Raises `WeightsError` where they cannot be read, or are not those that the recipe was written down with.
    """
    settings = recipe.finetune
    if settings.weights is None:
        return recipe, None
    checkpoint = read_checkpoint(settings.weights, prefix=settings.prefix, config=recipe.model)
    found = digest(checkpoint.tensors)
    if settings.sha256 not in (None, found):
        raise WeightsError(
            f"{checkpoint.source} has changed since the recipe was written: finetune.sha256 is "
            f"{quoted(settings.sha256)} there, and the weights' is {found}; take the old ones, or leave it out"
        )
    return recipe.replace({"finetune.weights": whole_path(settings.weights), "finetune.sha256": found}), checkpoint


def whole_path(weights: str) -> str:
    """Weights as a recipe names them, whatever the working directory."""
    if is_reference(weights) and not Path(weights).exists():
        return weights
    return str(Path(weights).expanduser().absolute())


def take_weights(network: ResNet, checkpoint: Checkpoint, classes: tuple[str, ...], head: str) -> str:
    """Bring weights into a new network, and say in a sentence what was taken and what is new.

    With the `head` at "auto" theirs is kept where it is for the same `classes`, whatever their order; "new" and "zero"
    start one. Raises `WeightsError` for weights of another network, which then stays as it was.
    """
    mine = network.state_dict()
    found = fit(checkpoint.tensors, checkpoint.layout, mine, checkpoint.source)
    state = dict(found.state)
    heads = {name: state.pop(name) for name in list(state) if name.startswith("fc.")}
    missing = [name for name in found.missing if not name.startswith("fc.")]
    wrong = [*missing, *(name for name in (*found.unexpected, *found.reshaped) if not name.startswith("fc."))]
    if wrong:
        names, differing = fitting_presets(checkpoint.config)
        nearest = names[0] + f" but for {', '.join(differing)}" * bool(differing)
        raise WeightsError(
            f"{checkpoint.source} does not fit the network: missing, unexpected or of another shape {some(wrong)}; the "
            f"weights are of {nearest}"
        )
    kept = head == "auto" and _head_for(classes, checkpoint, heads, network)
    if kept:
        state |= heads
    network.load_state_dict(state, strict=False)
    if head == "zero" and isinstance(network.fc, nn.Linear):
        nn.init.zeros_(network.fc.weight)
        nn.init.zeros_(network.fc.bias)
    adapted = [note for note in found.notes if not note.startswith(("the head", "a head", "the weights have no head"))]
    new = f"new, of {counted(len(classes), 'class')}" + ", from 0" * (head == "zero")
    ending = "that of the weights" if kept else new
    parts = [f"{checkpoint.source}: {len(state)} tensors taken, the head is {ending}", *checkpoint.notes, *adapted]
    return "; ".join(parts)


def _head_for(classes: tuple[str, ...], checkpoint: Checkpoint, heads: dict[str, Tensor], network: ResNet) -> bool:
    """Whether the weights' head is for these classes; its rows are then brought into their order, in place."""
    theirs = checkpoint.classes
    fits = all(name in heads and heads[name].shape == value.shape for name, value in _head_state(network).items())
    if theirs is None or not heads or not fits or sorted(theirs) != sorted(classes):
        return False
    places = {name: place for place, name in enumerate(theirs)}
    if len(places) < len(theirs):  # two classes of one name; their order is all that tells them apart
        return theirs == classes
    order = torch.tensor([places[name] for name in classes])
    for name, value in heads.items():
        heads[name] = value[order]
    return True


def _head_state(network: ResNet) -> dict[str, Tensor]:
    return {f"fc.{name}": value for name, value in network.fc.state_dict().items()}


def freeze_for(network: ResNet, recipe: Recipe) -> None:
    """Freeze what the recipe freezes from its first step on."""
    freeze_parts(network, recipe.finetune.freeze)


def frozen_parts(network: ResNet, recipe: Recipe) -> str:
    """What is frozen and until when, in words."""
    settings = recipe.finetune
    names = [part.name for part in network.parts()[: settings.freeze]]
    length = f"{settings.thaw:g} of the run" if settings.thaw < 1 else counted(settings.thaw, "epoch")
    return f"{', '.join(names)}, {f'for {length}' if settings.thaw else 'for the whole run'}"


def rates(network: ResNet, optimizer: Optimizer, recipe: Recipe) -> str:
    """The highest learning rates of the parts that ever learn, where they are not all the recipe's; else nothing."""
    settings = recipe.optimizer
    if settings.layer_decay == settings.head_lr == 1:
        return ""
    first = 0 if recipe.finetune.thaw else recipe.finetune.freeze
    return f"at their highest: {rates_of(network, optimizer.param_groups, settings.lr, first)}"


def thaw_in_time(network: ResNet, recipe: Recipe, step: int, total: int) -> None:
    """Let frozen parts learn again from the step on, counted from 0 of `total`, at which the recipe says so."""
    settings = recipe.finetune
    due = bool(settings.freeze and settings.thaw) and step >= steps_of(settings.thaw, total, recipe.epochs)
    if due and not next(network.conv1.parameters()).requires_grad:
        unfreeze(network)
