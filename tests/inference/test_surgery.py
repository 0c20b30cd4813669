"""What users put into a network: its effect is that of the network itself, or it is refused in a sentence."""

import copy
import functools
import random
import subprocess
import sys
import threading

import pytest
import torch
from tests.inference.surgeries import SURGERIES, Odd, in_double, let_a_norm_train
from tests.networks import relative, scramble
from torch import nn

from residuum import ConfigError, ResNet, create, optimize_for_inference
from residuum.errors import DeviceError
from residuum.inference.folding import Convolution, FoldedBlock, InFloat32

SMALL = {"depths": (2, 1), "widths": (8, 16), "stem_width": 8, "num_classes": 7, "zero_init_residual": False}
VARIANTS = [
    *({"activation": name} for name in ("relu", "leaky_relu", "silu", "gelu")),
    *({"preact": True} | kind for kind in ({}, {"block": "basic"}, {"attention": "se"}, {"activation": "silu"})),
    {"block": "basic", "downsample": "pad"},
    {"attention": "se", "norm": "group"},
    {"attention": "se", "stochastic_depth": 0.3},
    {"attention": "eca", "downsample": "avg"},
    {"antialias": "blur", "weight_standardization": True},
    {"stem": "deep", "stem_pool": "conv"},
]


def network(**changes):
    torch.manual_seed(0)
    model = create("resnet50", **SMALL | changes)
    scramble(model)
    return model.eval()


def answers(model, images):
    """The model's own, leaving what it remembers as it was."""
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        out = model(images.clone())
    model.load_state_dict(before)
    return out


def operated(seed):
    """A network of some kind on which up to four surgeries were done that work on it, and their names."""
    chance = random.Random(seed)
    model, images = network(**chance.choice(VARIANTS)), torch.randn(2, 3, 33, 29)
    done = []
    for surgery in chance.sample(SURGERIES, chance.randint(1, 4)):
        attempt, state = copied(model), chance.getstate()
        try:
            surgery(attempt, chance)
            evaluate(attempt, [*done, surgery])
            if not answers(attempt, images).isfinite().all():
                continue
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            continue  # some cannot follow some others, whatever becomes of the network
        chance.setstate(state)
        surgery(model, chance)
        done.append(surgery)
        evaluate(model, done)
    return model, images, done


def evaluate(model, done):
    """Evaluation for all layers, but for norms that were set to training on purpose."""
    for module in model.modules():
        if not (let_a_norm_train in done and isinstance(module, nn.BatchNorm2d)):
            module.training = False


def copied(model):
    memo = {id(v): v.detach().clone() for m in model.modules() for v in vars(m).values() if torch.is_tensor(v)}
    return copy.deepcopy(model, memo)


def check(seed, tolerances):
    model, images, done = operated(seed)
    what = f"seed {seed}: {[surgery.__name__ for surgery in done]}, {model.config}"
    given, before = images.clone(), copy.deepcopy(model.state_dict())
    expected = answers(model, images)
    exact = answers(copied(model).double(), images.double())
    for precision, tolerance in tolerances.items():
        # Some surgeries make rounding large in any network: then as exact as the network itself in float32.
        allowed = max(tolerance, 4 * relative(expected.double(), exact))
        net = optimize_for_inference(model, precision=precision)
        for _ in range(2):  # what is kept between passes changes nothing
            assert relative(net(images).double(), exact) < allowed, what
    assert torch.equal(images, given), what
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), what
    with torch.no_grad():
        assert torch.equal(model(images.clone()), expected), what


@pytest.mark.parametrize("seed", range(60))
def test_random_surgery_keeps_its_effect(seed):
    check(seed, {"fp32": 1e-5, "bf16": 0.03})


@pytest.mark.slow
def test_random_surgery_of_new_kinds_keeps_its_effect():
    for seed in random.SystemRandom().sample(range(10**9), 80):
        check(seed, {"fp32": 1e-5})


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_is_not_touched_is_folded_around_what_is():
    model = network(depths=(3, 2))
    model.layer1[1].bn2 = Odd()
    model.layer2[1].register_forward_hook(lambda m, i, o: o.clamp(max=0.5))
    model.layer1.register_forward_hook(lambda m, i, o: 2 * o)
    net = optimize_for_inference(model, precision="fp32")
    assert sum(isinstance(m, FoldedBlock) for m in net.modules()) == 4
    assert sum(isinstance(m, InFloat32) for m in net.modules()) == 3


def test_masks_and_torchs_parametrisations_cost_nothing():
    model = network()
    nn.utils.prune.l1_unstructured(model.layer1[0].conv2, "weight", 0.5)
    nn.utils.parametrizations.spectral_norm(model.layer1[1].conv1)
    nn.utils.parametrizations.weight_norm(model.conv1)
    model.eval()
    count = sum(isinstance(m, Convolution) for m in optimize_for_inference(network()).modules())
    net = optimize_for_inference(model, precision="fp32")
    assert sum(isinstance(m, Convolution) for m in net.modules()) == count
    images = torch.randn(2, 3, 33, 29)
    assert relative(net(images), answers(model, images)) < 1e-5
    model.conv1(images).sum().backward()  # the parametrisations of the network itself are as they were
    assert model.conv1.parametrizations.weight.original0.grad is not None


def test_hooks_are_called_with_whole_tensors_that_stay_as_they_were():
    class Recorder:
        def __init__(self):
            self.seen = []

        def take(self, module, given, out):
            self.seen += [given[0], out]

    for precision in ("fp32", "bf16"):
        recorder, model = Recorder(), network()
        names = ["layer1", "layer1.0", "layer1.0.conv1", "layer1.0.conv2", "layer1.1", "layer2", "conv1", "fc"]
        for name in names:
            model.get_submodule(name).register_forward_hook(recorder.take)
        net, images = optimize_for_inference(model, precision=precision), torch.randn(2, 3, 33, 29)
        assert not recorder.seen
        assert relative(net(images), answers(model, images)) < 0.03
        ours, theirs = recorder.seen[: 2 * len(names)], recorder.seen[2 * len(names) :]
        assert len(ours) == len(theirs) == 2 * len(names)
        for got, expected in zip(ours, theirs, strict=True):
            assert got.dtype == torch.float32
            assert relative(got, expected) < (1e-5 if precision == "fp32" else 0.03)


def test_hooks_on_the_network_itself_are_called_with_it():
    model = network()
    model.register_forward_pre_hook(lambda m, i: (i[0] / 255,))
    model.register_forward_hook(lambda m, i, o: o.softmax(1))
    images = torch.rand(2, 3, 33, 29) * 255
    net = optimize_for_inference(model, precision="fp32")
    assert relative(net(images), answers(model, images)) < 1e-5


def test_a_method_that_wraps_the_one_before_it_is_called():
    model, images = network(), torch.randn(2, 3, 33, 29)
    before = model.layer1[0].forward
    model.layer1[0].forward = lambda x: before(x).clamp(max=0.1)
    assert relative(optimize_for_inference(model, precision="fp32")(images), answers(model, images)) < 1e-5


def test_a_first_convolution_for_grey_images_takes_grey_images():
    model = network()
    model.conv1 = nn.Conv2d(1, 8, 7, 2, 3, bias=False)
    images = torch.randn(2, 1, 33, 29)
    net = optimize_for_inference(model, precision="fp32")
    assert relative(net(images), answers(model, images)) < 1e-5


def test_images_are_left_alone_where_nothing_stands_before_the_blocks():
    model = network(stem="conv3", stem_pool="none", in_channels=8)
    model.conv1 = model.bn1 = model.act1 = nn.Identity()
    del model.layer1[0]
    model.layer1[0] = network(block="basic", widths=(8, 16)).layer1[1]
    images = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    given = images.clone()
    model.layer2 = model.norm = nn.Identity()
    model.fc = nn.Linear(8, 2)
    net = optimize_for_inference(model, precision="fp32")
    assert relative(net(images), answers(model, images)) < 1e-5
    assert torch.equal(images, given)


def test_weights_in_double_and_half_count_as_they_are():
    images = torch.randn(2, 3, 33, 29)
    model = network()
    in_double(model, None)
    expected = answers(model, images.double())
    assert relative(optimize_for_inference(model, precision="fp32")(images), expected.float()) < 1e-5
    half = network().half()
    expected = answers(copy.deepcopy(half).float(), images)
    assert relative(optimize_for_inference(half, precision="fp32")(images), expected) < 1e-5


def test_a_subclass_that_only_adds_is_folded():
    class Mine(ResNet):
        def __init__(self, config):
            super().__init__(config)
            self.note = "mine"

        def describe(self):
            return self.note

    model = Mine(network().config).eval()
    images = torch.randn(2, 3, 33, 29)
    assert relative(optimize_for_inference(model, precision="fp32")(images), answers(model, images)) < 1e-5


BLOCKS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad disabled": lambda: torch.set_grad_enabled(False),
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_network_made_in_any_block_serves_inside_and_outside(block):
    images, model = torch.randn(2, 3, 33, 29), network(attention="se")
    model.layer1[0].bn1 = Odd()
    model.eval()
    expected = answers(model, images)
    with block():
        net = optimize_for_inference(model, precision="fp32")
        assert relative(net(images), expected) < 1e-5
    assert relative(net(images), expected) < 1e-5
    with torch.inference_mode():
        assert relative(net(images), expected) < 1e-5


def test_a_network_whose_weights_were_made_in_inference_mode_serves():
    with torch.inference_mode():
        model = network()
        expected = model(torch.ones(2, 3, 33, 29))
    assert relative(optimize_for_inference(model, precision="fp32")(torch.ones(2, 3, 33, 29)), expected) < 1e-5


def test_the_default_dtype_changes_nothing():
    model, images = network(), torch.randn(2, 3, 33, 29)
    torch.set_default_dtype(torch.float64)
    try:
        net = optimize_for_inference(model, precision="fp32")
        assert net(images).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert relative(net(images), answers(model, images)) < 1e-5


# -- what is refused ---------------------------------------------------------------------------------------------------


class OwnStem(ResNet):
    """A network that runs otherwise than ResNet."""

    def stem(self, x):
        return super().stem(x) * 2


def with_own_forward():
    model = network()
    model.forward = functools.partial(ResNet.forward, model)
    return model


def with_a_lock():
    model = network()
    model.lock = threading.Lock()
    return model


def partly_without_weights():
    model = network()
    model.fc.to("meta")
    return model


def with_a_lazy_layer():
    model = network()
    model.fc = nn.LazyLinear(3)
    return model


REFUSED = [
    (lambda: nn.Linear(1, 1), ConfigError, "the model is a torch.nn.modules.linear.Linear; give a residuum.ResNet"),
    (lambda: nn.DataParallel(network()), ConfigError, "DataParallel around a network; give the network, its .module"),
    (lambda: torch.compile(network()), ConfigError, "OptimizedModule around a network; give the network, its ._orig"),
    (lambda: torch.optim.swa_utils.AveragedModel(network()), ConfigError, "its .module"),
    (lambda: optimize_for_inference(network()), ConfigError, "FoldedResNet; give a residuum.ResNet"),
    (lambda: OwnStem(network().config), ConfigError, "runs its own stem instead of ResNet's"),
    (with_own_forward, ConfigError, "runs its own forward instead of ResNet's"),
    (with_a_lock, ConfigError, "cannot be copied (cannot pickle"),
    (with_a_lazy_layer, ConfigError, "a layer whose weights do not exist yet"),
    (lambda: network().to("meta"), DeviceError, "on the meta device and has no weights"),
    (partly_without_weights, DeviceError, "on the meta device and has no weights"),
    (lambda: "resnet50", ConfigError, "the model is a builtins.str"),
]


@pytest.mark.parametrize(("make", "kind", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_what_cannot_be_kept_is_refused_in_a_sentence(make, kind, says):
    with pytest.raises(kind) as raised:
        optimize_for_inference(make())
    assert says in str(raised.value)


def test_a_hook_on_all_modules_is_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
    try:
        with pytest.raises(ConfigError, match="a hook on all modules"):
            optimize_for_inference(network())
    finally:
        handle.remove()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no distribution")
def test_wrappers_of_distributed_training_are_refused(tmp_path):
    code = f"""
import torch, torch.distributed as dist
from residuum import ResiduumError, create, optimize_for_inference, save
from residuum.memory import plan, recompute
dist.init_process_group("gloo", init_method="file://{(tmp_path / "meeting").as_posix()}", rank=0, world_size=1)
def net():
    return create("resnet18", width=0.125).eval()
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
for make in (
    lambda: torch.nn.parallel.DistributedDataParallel(net()),
    lambda: fully_shard(net(), mesh=init_device_mesh("cpu", (1,))),
):
    for use in (
        optimize_for_inference,
        lambda net: recompute(net, "block"),
        lambda net: plan(net, 1, 2**30),
        lambda net: save(net, {str(tmp_path / "x")!r}),
    ):
        try:
            use(make())
            print("taken")
        except ResiduumError as error:
            print(error)
dist.destroy_process_group()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *wrapped, saved, a, b, c, d = run.stdout.strip().splitlines()[-8:]
    assert all("DistributedDataParallel around a network; give the network, its .module" in line for line in wrapped)
    assert saved == "taken"  # the file holds the network inside
    assert all("spread over processes" in line for line in (a, b, c, d))
