"""Recomputation changes what is kept and nothing else."""

import copy
import os
import sys
from contextlib import nullcontext

import pytest
import torch
from tests.networks import scramble
from tests.train.processes import PerRank, in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune

from residuum import ConfigError, ResNetConfig, create, freeze
from residuum.memory import MODES, kept_bytes, recompute
from residuum.nn.stochastic_depth import seed_stochastic_depth

SMALL = ResNetConfig(
    depths=(2, 2), widths=(8, 16), stem_width=8, num_classes=5, zero_init_residual=False, output_stride=32
)
VARIANTS = {
    "bottleneck": {},
    "basic": {"block": "basic"},
    "preact": {"preact": True},
    "preact-basic-d": {"preact": True, "block": "basic", "downsample": "avg", "stem": "deep"},
    "se": {"attention": "se"},
    "basic-eca": {"block": "basic", "attention": "eca"},
    "blur": {"antialias": "blur", "downsample": "avg"},
    "group": {"norm": "group"},
    "gelu": {"activation": "gelu"},
    "silu": {"activation": "silu", "block": "basic"},
    "pad": {"downsample": "pad", "block": "basic"},
    "row": {"stochastic_depth": 0.5, "dropout": 0.3},
    "batch": {"stochastic_depth": 0.5, "stochastic_depth_mode": "batch", "dropout": 0.3},
    "basic-row": {"stochastic_depth": 0.5, "block": "basic", "preact": True},
    "cumulative": {},
    "frozen": {},
    "wide": {"depths": (1, 2), "widths": (72, 136)},
    "standardized": {"weight_standardization": True, "norm": "group", "preact": True, "stem_pool": "max0"},
}


def build(variant):
    torch.manual_seed(0)
    model = create(SMALL.replace(**VARIANTS[variant]))
    scramble(model)
    if variant == "cumulative":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
    return freeze(model, stages=1) if variant == "frozen" else model


def train(model, *, bf16=False, steps=3, accumulate=2):
    """Losses, gradients, parameters and buffers after some steps."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            images = torch.randn(4, 3, 33, 40).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                loss = nn.functional.cross_entropy(model(images).float(), torch.randint(5, (4,)))
            loss.backward()
            found.append(loss.detach())
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return found + [t.clone() for t in model.state_dict().values()]


PRECISIONS = [pytest.param(False, id="fp32"), pytest.param(True, id="bf16", marks=pytest.mark.slow)]


def same(ours, plain):
    return len(ours) == len(plain) and all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("bf16", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mode_gives_the_plain_networks_numbers_to_the_bit(variant, bf16):
    plain = train(build(variant), bf16=bf16)
    for mode in MODES[1:]:
        assert same(train(recompute(build(variant), mode), bf16=bf16), plain), mode


def test_without_the_guard_statistics_would_be_wrong():
    """What the guard is for: torch's checkpoint alone averages and counts twice."""
    from torch.utils.checkpoint import checkpoint

    model = build("bottleneck")
    norm = model.layer1[0].bn1
    checkpoint(model.layer1[0], torch.randn(2, 8, 9, 9, requires_grad=True), use_reentrant=False).sum().backward()
    assert norm.num_batches_tracked == 2
    model = recompute(build("bottleneck"), "block")
    model.layer1[0](torch.randn(2, 8, 9, 9, requires_grad=True)).sum().backward()
    assert model.layer1[0].bn1.num_batches_tracked == 1


def test_modes_may_differ_by_stage_and_by_block():
    plain = train(build("bottleneck"))
    for modes in (["stage", "none"], ["selective", ["block", "none"]], [["none", "block"], "stage"]):
        assert same(train(recompute(build("bottleneck"), modes)), plain), modes


def test_each_mode_keeps_less_than_the_one_before():
    config = ResNetConfig(depths=(3, 3), widths=(16, 32), stem_width=16, num_classes=5)
    images = torch.randn(4, 3, 64, 64)
    kept = [kept_bytes(recompute(create(config), mode), images) for mode in MODES]
    assert kept == sorted(kept, reverse=True)
    assert kept[1] < 0.6 * kept[0]
    assert kept[2] < 0.4 * kept[0]


def test_none_undoes_everything_and_names_never_change():
    model = build("bottleneck")
    names, inside = list(model.state_dict()), {k: set(m.__dict__) for k, m in model.named_modules()}
    for mode in MODES:
        recompute(model, mode)
        assert list(model.state_dict()) == names
    recompute(model, "none")
    assert {k: set(m.__dict__) for k, m in model.named_modules()} == inside


def test_a_copy_recomputes_by_itself():
    model = recompute(build("bottleneck"), "selective")
    twin = copy.deepcopy(model)
    plain = train(build("bottleneck"))
    assert same(train(twin), plain)
    assert same(train(model), plain), "the copy's steps did not touch the original"


def test_a_skipped_block_is_not_run_in_either_pass():
    for mode in MODES:
        model = recompute(build("batch"), mode)
        calls, last = [], model.layer2[-1]
        last.conv1.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        last.drop.rate = 1 - 1e-9
        model(torch.randn(2, 3, 33, 33)).sum().backward()
        assert not calls, mode


def test_evaluation_and_inference_are_untouched():
    plain, model = build("bottleneck").eval(), recompute(build("bottleneck"), "stage").eval()
    images = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        assert torch.equal(plain(images), model(images))
    assert torch.equal(plain(images), model(images))
    for a, b in zip(plain.features(images), model.features(images), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("all", "mode is 'all'; it must be one of none, selective, block, stage"),
        (3, "mode is 3; it must be one of none"),
        (["none"], "1 modes are given for 2 stages"),
        (["none", ["block"]], "1 modes are given for the 2 blocks of stage 2"),
        (["none", ["block", "stage"]], "for whole stages only"),
    ],
)
def test_modes_that_cannot_be_are_refused_and_change_nothing(mode, says):
    model = recompute(build("bottleneck"), "block")
    before = model.layer1[0].forward
    with pytest.raises(ConfigError, match=says):
        recompute(model, mode)
    assert model.layer1[0].forward is before


def test_a_model_that_is_not_ours_is_refused():
    with pytest.raises(ConfigError, match=r"the model is a torch\.nn\.\S*Linear; give a residuum\.ResNet"):
        recompute(nn.Linear(2, 2), "block")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a C++ compiler that torch.compile finds")
def test_compiled_the_networks_numbers_stay():
    images = torch.randn(2, 3, 32, 32)
    expected = build("basic")(images)
    out = torch.compile(recompute(build("basic"), "selective"), fullgraph=True, backend="aot_eager")(images)
    assert torch.allclose(out, expected, atol=1e-5)
    out.sum().backward()


def _distributed(rank, folder):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for variant in ("bottleneck", "batch"):
        found = {}
        for mode in MODES:
            model = DistributedDataParallel(recompute(build(variant), mode))
            torch.manual_seed(rank)
            found[mode] = []
            for _ in range(3):
                loss = model(torch.randn(2, 3, 33, 33)).square().mean()
                loss.backward()
                found[mode] += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
            found[mode] += list(model.module.state_dict().values())
        torch.save(
            {mode: same(values, found["none"]) for mode, values in found.items()}, f"{folder}/{variant}{rank}.pt"
        )
    torch.distributed.destroy_process_group()
    return rank


@pytest.mark.slow
def test_two_processes_get_the_plain_networks_numbers(tmp_path):
    assert in_processes(2, _distributed, PerRank((0, 1)), os.fspath(tmp_path)) == [0, 1]
    for path in sorted(tmp_path.glob("*.pt")):
        assert all(torch.load(path).values()), path.name
    assert len(list(tmp_path.glob("*.pt"))) == 4


# -- what a user put into the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["row", "batch", "basic-row"])
def test_seeded_draws_are_the_same_in_the_second_pass(variant):
    def run(model):
        torch.manual_seed(1)
        found = []
        for step in range(3):
            seed_stochastic_depth(model, step, 10 + step)
            loss = model(torch.randn(4, 3, 33, 40)).square().mean()
            loss.backward()
            found += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
        return found + list(model.state_dict().values())

    plain = run(build(variant))
    for mode in MODES[1:]:
        assert same(run(recompute(build(variant), mode)), plain), mode


class Noise(nn.Module):
    def forward(self, x):
        return x * (1 + 0.1 * torch.randn_like(x))


def own_layers(model):
    model.layer1[1].bn2 = nn.Sequential(model.layer1[1].bn2, nn.Dropout(0.5))
    model.layer2[0].act1 = nn.Sequential(nn.RReLU(), Noise())
    model.layer2[1].bn3 = nn.InstanceNorm2d(64, affine=True, track_running_stats=True)
    model.maxpool = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Dropout(0.2))


def spectral(model):
    for block in (model.layer1[0], model.layer2[1]):
        torch.nn.utils.parametrizations.spectral_norm(block.conv2)
        torch.nn.utils.parametrizations.weight_norm(block.conv1)
        parametrize.register_parametrization(block.bn2, "weight", nn.Softplus())


def pruned(model):
    for block in (model.layer1[0], model.layer2[1]):
        for name in ("conv1", "conv3"):
            prune.random_unstructured(getattr(block, name), "weight", 0.5)
    prune.random_unstructured(model.conv1, "weight", 0.5)
    prune.random_unstructured(model.layer2[0].downsample[0], "weight", 0.5)


def hooked(model):
    for name, module in list(model.named_modules()):
        if name.endswith(("conv1", "bn2", "act1", "downsample", "downsample.0", "se", "maxpool", "layer2", "layer1.1")):
            module.register_forward_hook(lambda m, args, out: out * 1.5)
            module.register_forward_pre_hook(lambda m, args: (args[0] + 0.1,))


def shared(model):
    for block in (b for stage in model.stages for b in stage):
        block.act1 = block.act2 = model.act1


@pytest.mark.parametrize("bf16", PRECISIONS)
@pytest.mark.parametrize("change", [own_layers, spectral, pruned, hooked, shared])
def test_what_a_user_put_into_the_network_keeps_its_effect_to_the_bit(change, bf16):
    def changed():
        model = build("bottleneck")
        change(model)
        return model

    plain = train(changed(), bf16=bf16)
    for mode in MODES[1:]:
        assert same(train(recompute(changed(), mode), bf16=bf16), plain), mode


def test_the_pooling_convolutions_norm_counts_once():
    model = recompute(create(SMALL.replace(stem_pool="conv")), "block")
    model(torch.randn(2, 3, 33, 33)).sum().backward()
    assert {int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")} == {1}


@pytest.mark.parametrize("bf16", PRECISIONS)
@pytest.mark.parametrize("variant", ["bottleneck", "preact", "se", "blur", "gelu"])
def test_hooks_on_every_module_run_in_every_mode(variant, bf16):
    for mode in MODES:
        model, ran = recompute(build(variant), mode), set()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *args, name=name, ran=ran: ran.add(name))
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            model(torch.randn(2, 3, 33, 33)).float().sum().backward()
        assert ran == {name for name, _ in model.named_modules()}, mode


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_network_is_refused(wrap):
    with pytest.raises(ConfigError, match="around a network; give the network, its"):
        recompute(wrap(build("bottleneck")), "block")


def test_a_forward_that_was_put_in_by_hand_is_not_overwritten():
    model = build("bottleneck")
    model.layer2[0].forward = lambda x: x
    with pytest.raises(ConfigError, match="put in its place by hand"):
        recompute(model, "block")
