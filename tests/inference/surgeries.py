"""What people do to networks: each a function of a network and a generator of random choices, done in place."""

import types
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from residuum import freeze, recompute
from residuum.nn.blocks import Block


class Odd(nn.Module):
    """A layer that folding cannot know, with a weight of its own and a taste for one memory format."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        assert x.dtype != torch.bfloat16
        return x.view(x.shape[0], -1).mul(self.scale).view(x.shape).tanh()


class Scaled(nn.Module):
    """A parametrisation of a user's own."""

    def forward(self, weight):
        return 1.1 * weight


class NormAndMore(nn.BatchNorm2d):
    """As timm's `BatchNormAct2d`: a batch norm that does more than one."""

    def forward(self, x):
        return super().forward(x).clamp(max=1.5)


class Twice(nn.Module):
    """The same block two times."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x))


def bent(x):
    """Half of what is positive: seen in any output, and at any scale no less exact than its input."""
    return torch.where(x > 0, x / 2, x)


def any_module(model, chance, kinds):
    return chance.choice([m for m in model.modules() if isinstance(m, kinds)])


def any_place(model, chance, kinds, fits=lambda child: True):
    """A parent and the name of a child of these kinds, or None."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds) and fits(child)
    ]
    return chance.choice(places) if places else None


def put(model, chance, kinds, make, fits=lambda child: True):
    if place := any_place(model, chance, kinds, fits):
        parent, name = place
        setattr(parent, name, make(getattr(parent, name)))


def hook_an_output(model, chance):
    any_module(model, chance, nn.Module).register_forward_hook(lambda m, i, o: bent(o))


def hook_an_output_with_keywords(model, chance):
    any_module(model, chance, Block).register_forward_hook(lambda m, a, k, o: o * 0.9, with_kwargs=True)


def hook_an_input(model, chance):
    any_module(model, chance, nn.Module).register_forward_pre_hook(lambda m, i: (i[0] * 0.8,))


def hook_gradients(model, chance):
    any_module(model, chance, (nn.Conv2d, Block)).register_full_backward_hook(lambda m, i, o: None)


def prune_a_layer(model, chance):
    prune.random_unstructured(any_module(model, chance, (nn.Conv2d, nn.BatchNorm2d)), "weight", 0.3)


def normalise_a_weight(model, chance):
    made = chance.choice([parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal])
    made(any_module(model, chance, nn.Conv2d))


def normalise_a_weight_the_old_way(model, chance):
    made = chance.choice([nn.utils.weight_norm, nn.utils.spectral_norm])
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, but networks have it
        made(any_module(model, chance, nn.Conv2d))


def parametrise_a_weight(model, chance):
    layer = any_module(model, chance, (nn.Conv2d, nn.BatchNorm2d))
    parametrize.register_parametrization(layer, "weight", Scaled())


def change_an_activation(model, chance):
    kinds = (nn.ReLU, nn.SiLU, nn.GELU, nn.LeakyReLU)
    put(model, chance, kinds, lambda old: chance.choice([Odd, nn.Tanh, nn.PReLU, nn.Identity, nn.Softplus])())


def change_a_norm(model, chance):
    def make(old):
        channels = old.num_features
        plain = [nn.Identity(), Odd(), nn.GroupNorm(1, channels), nn.InstanceNorm2d(channels), NormAndMore(channels)]
        untracked = nn.BatchNorm2d(channels, track_running_stats=False)
        return chance.choice([*plain, untracked, nn.Sequential(nn.BatchNorm2d(channels), nn.Hardtanh())])

    put(model, chance, nn.BatchNorm2d, make)


def change_a_convolution(model, chance):
    def make(old):
        inp, out, size, stride = old.in_channels, old.out_channels, old.kernel_size, old.stride
        circular = nn.Conv2d(inp, out, size, stride, old.padding, old.dilation, padding_mode="circular")
        biased = nn.Conv2d(inp, out, size, stride, old.padding, old.dilation)
        same = [nn.Conv2d(inp, out, size, padding="same")] if stride == (1, 1) and old.dilation == (1, 1) else []
        return chance.choice([circular, biased, nn.Sequential(old, Odd()), nn.Sequential(Odd(), old), *same])

    put(model, chance, nn.Conv2d, make)


def add_a_layer_in_place(model, chance):
    put(model, chance, nn.Conv2d, lambda old: nn.Sequential(nn.ReLU(inplace=True), old))


def change_attention(model, chance):
    block = any_module(model, chance, Block)
    block.se = chance.choice([Odd(), nn.Identity(), nn.ReLU(inplace=True), None, nn.Hardtanh(-0.5, 0.5)])


def change_stochastic_depth(model, chance):
    any_module(model, chance, Block).drop = chance.choice([Odd(), nn.Hardtanh(-0.5, 0.5), nn.Dropout(0.5)])


def shape_stays(block):
    return block.downsample is None


def change_a_block(model, chance):
    put(
        model,
        chance,
        Block,
        lambda old: chance.choice([nn.Identity(), Twice(old), nn.Sequential(old, old)]),
        shape_stays,
    )


def share_a_convolution(model, chance):
    first = any_module(model, chance, nn.Conv2d)
    put(
        model,
        chance,
        nn.Conv2d,
        lambda old: first,
        lambda other: str(other) == str(first),
    )


def empty_the_front_of_a_block(model, chance):
    blocks = [b for b in model.modules() if isinstance(b, Block) and b.conv1.in_channels == b.conv1.out_channels]
    blocks = [b for b in blocks if b.conv1.stride == (1, 1)] if blocks else []
    if blocks:
        block = chance.choice(blocks)
        block.conv1 = nn.Identity()
        if chance.random() < 0.5:
            block.bn1 = nn.Identity()


def change_the_head(model, chance):
    features = model.config.num_features
    model.fc = chance.choice(
        [nn.Sequential(nn.Linear(features, 5), nn.Tanh()), nn.Identity(), nn.Linear(features, 3, bias=False)]
    )
    model.dropout = chance.choice([nn.Identity(), nn.Hardtanh(), Odd(), nn.Dropout(0.9)])


def change_a_stage(model, chance):
    name = chance.choice([info.name for info in model.feature_info])
    setattr(model, name, nn.Sequential(*getattr(model, name)))


def replace_a_method(model, chance):
    block = any_module(model, chance, Block)
    block.forward = types.MethodType(lambda self, x: bent(type(self).forward(self, x)), block)


def let_a_norm_train(model, chance):
    any_module(model, chance, nn.BatchNorm2d).train()


def freeze_norms(model, chance):
    freeze(model, chance.randint(0, 1))


def synchronise_norms(model, chance):
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def recompute_stages(model, chance):
    recompute(model, chance.choice(["selective", "block", "stage"]))


def in_double(model, chance):
    model.double()


SURGERIES = [
    hook_an_output,
    hook_an_output_with_keywords,
    hook_an_input,
    hook_gradients,
    prune_a_layer,
    normalise_a_weight,
    normalise_a_weight_the_old_way,
    parametrise_a_weight,
    change_an_activation,
    change_a_norm,
    change_a_convolution,
    add_a_layer_in_place,
    change_attention,
    change_stochastic_depth,
    change_a_block,
    share_a_convolution,
    empty_the_front_of_a_block,
    change_the_head,
    change_a_stage,
    replace_a_method,
    let_a_norm_train,
    freeze_norms,
    synchronise_norms,
    recompute_stages,
]
