"""Starting from weights: what they say for a recipe, what is taken, what stays frozen, and what a run carries."""

import io
import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import StopAfter, console, same

import residuum
from residuum import ResNet, preset
from residuum.errors import ConfigError, WeightsError
from residuum.nn.freezing import FrozenBatchNorm
from residuum.preprocessing import Preprocessing
from residuum.train import Recipe, fit, resume
from residuum.train.estimate import estimate
from residuum.train.finetune import take_weights
from residuum.train.optim import make_optimizer, set_learning_rate
from residuum.train.recipe import OptimizerSettings
from residuum.train.run import Run
from residuum.train.step import train_step
from residuum.weights.files import read_checkpoint

LOOK = Preprocessing(3, (8, 8), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 0.9, "bicubic")


def network(classes=("a", "b", "c", "d"), **fields):
    torch.manual_seed(0)
    config = preset("digits_resnet").replace(width=0.25, in_channels=3, num_classes=len(classes), **fields)
    model = ResNet(config)
    model.classes, model.preprocessing = tuple(classes), LOOK
    for value in model.buffers():  # as if it had seen something
        value.add_(1)
    return model


@pytest.fixture
def weights(tmp_path):
    """A file of a network of four classes of colour images of 8 pixels."""
    residuum.save(network(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def started(root, weights, **changes):
    fields = {"epochs": 2, "batch_size": 4, "precision": "fp32"} | changes
    return Recipe.default(str(root), weights=weights).replace(fields)


def tensors(path):
    return load_file(path / "weights.safetensors" if path.is_dir() else path)


# -- what weights say for a recipe -------------------------------------------------------------------------------------


def test_network_and_preprocessing_are_those_of_the_weights_and_classes_those_of_the_data(weights, image_folder):
    recipe = Recipe.default(str(image_folder(side=16)), weights=weights)
    assert recipe.model == network().config.replace(num_classes=3)
    assert (recipe.data.mean, recipe.data.std) == (LOOK.mean, LOOK.std)
    assert (recipe.data.image_size, recipe.data.interpolation) == ((8, 8), "bicubic")
    assert recipe.finetune.weights == str(weights)


def test_photographs_are_cropped_as_the_weights_want_it(weights, image_folder):
    assert Recipe.default(str(image_folder(side=80)), weights=weights).data.crop == 0.9


def test_images_of_the_weights_own_size_stay_as_they_are(weights, image_folder):
    recipe = Recipe.default(str(image_folder(side=8)), weights=weights)
    assert (recipe.data.image_size, recipe.data.crop) == (None, None)
    assert recipe.data.mean == LOOK.mean


def test_the_finetune_recipe_is_the_default_where_weights_are_given(weights, image_folder):
    root = image_folder(side=8, train=20)
    recipe = Recipe.default(str(root), weights=weights)
    assert (recipe.optimizer.lr, recipe.optimizer.head_lr, recipe.optimizer.layer_decay) == (0.01, 10.0, 0.9)
    assert recipe.epochs == 100


@pytest.mark.parametrize(("images", "batch_size"), [(3, 3), (54, 54), (70, 35), (127, 63), (1000, 50), (50_000, 64)])
def test_few_images_are_all_used_or_next_to_all(images, batch_size):
    from residuum.train.recipes import named_recipe

    found = named_recipe("finetune").fields_for(images)
    assert found["batch_size"] == batch_size
    assert images % batch_size <= 1 or images > 2048
    assert 10 <= found["epochs"] <= 100


@pytest.mark.parametrize(
    ("images", "steps", "warmup"), [(1000, 500, 0.2), (50_000, 10_000, 0.05), (1_281_167, 20_000, 0.025)]
)
def test_bits_rule_gives_steps_by_the_number_of_images(images, steps, warmup):
    from residuum.train.recipes import named_recipe

    found = named_recipe("bit").fields_for(images)
    assert found["epochs"] * (images // 512) == pytest.approx(steps, rel=0.07)
    assert found["schedule.warmup"] == warmup
    assert found["mixing.mixup"] == (0.1 if images >= 20_000 else 0.0)


def test_a_preset_that_the_weights_are_of_may_be_named(tmp_path):
    torch.manual_seed(0)
    model = ResNet(preset("cifar_resnet20"))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert Recipe.default("digits", "cifar_resnet20", tmp_path / "w.pt").model.depths == (3, 3, 3)
    with pytest.raises(ConfigError, match=r"w\.pt holds cifar_resnet20, and no cifar_resnet32; leave the model out"):
        Recipe.default("digits", "cifar_resnet32", tmp_path / "w.pt")


def test_a_preset_whose_channels_the_weights_have_by_a_width_may_be_named(finished):
    assert Recipe.default("digits", "digits_resnet", finished.path).model.width == 0.25


def test_what_the_weights_say_and_no_shape_shows_is_compared_with_the_preset_too(tmp_path):
    residuum.save(ResNet(preset("cifar_resnet20").replace(activation="silu")), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="a network with activation 'silu', and cifar_resnet20 has 'relu'"):
        Recipe.default("digits", "cifar_resnet20", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finetune.freeze": 4}, "finetune.freeze is 4; it must be at most 3, the stem and all 2 stages"),
        ({"finetune.freeze": 1, "finetune.thaw": 9}, "finetune.thaw is 9 epochs but the run has 2"),
        ({"finetune.thaw": 0.5}, "finetune.thaw is 0.5, but nothing is frozen"),
        ({"finetune.head": "old"}, "finetune.head is 'old'; it must be one of auto, new, zero"),
    ],
)
def test_what_cannot_be_is_refused(weights, changes, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        started("digits", weights, **changes)


@pytest.mark.parametrize("field", [{"freeze": 1}, {"head": "zero"}, {"prefix": "module"}])
def test_what_needs_weights_is_refused_without(field):
    with pytest.raises(ConfigError, match="there are no weights to start from; name them by --weights"):
        Recipe().replace({"finetune": field})


# -- what is taken -----------------------------------------------------------------------------------------------------


def taken(source, classes, head="auto", **fields):
    torch.manual_seed(1)
    model = ResNet(source.config.replace(num_classes=len(classes), **fields))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = take_weights(model, read_checkpoint(source), tuple(classes), head)
    return model, before, said


def test_the_head_is_kept_for_the_same_classes_in_their_own_order():
    source = network()
    model, _, said = taken(source, "cabd")
    assert "the head is that of the weights" in said
    assert torch.equal(model.fc.weight, source.fc.weight[[2, 0, 1, 3]])
    assert torch.equal(model.fc.bias, source.fc.bias[[2, 0, 1, 3]])


@pytest.mark.parametrize(("classes", "head"), [("wxyz", "auto"), ("abc", "auto"), ("abcd", "new")])
def test_another_head_is_new_and_a_function_of_the_seed(classes, head):
    source = network()
    model, before, said = taken(source, classes, head)
    assert f"the head is new, of {len(classes)} classes" in said
    for name, value in model.state_dict().items():
        expected = before if name.startswith("fc.") else source.state_dict()
        assert torch.equal(value, expected[name]), name


def test_a_head_can_start_at_zero():
    model, _, said = taken(network(), "xyz", "zero")
    assert said.endswith("from 0")
    assert not model.fc.weight.any()
    assert not model.fc.bias.any()


def test_a_head_of_as_many_classes_without_names_is_not_kept():
    source = network()
    source.classes = None
    model, before, _ = taken(source, "abcd")
    assert torch.equal(model.fc.weight, before["fc.weight"])


def test_grey_images_get_the_sum_of_the_filters_and_it_is_said():
    source = network()
    model, _, said = taken(source, "abcd", in_channels=1)
    torch.testing.assert_close(model.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    assert "the first convolution was summed from 3 to 1 image channels" in said


def test_weights_of_another_network_are_refused_and_nothing_is_taken():
    source = network()
    model = ResNet(preset("digits_resnet"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="the network does not fit the network: missing, unexpected or of another"):
        take_weights(model, read_checkpoint(source), source.classes, "auto")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_from_weights_says_what_it_took_and_ends_above_chance(finished, tmp_path):
    text = io.StringIO()
    recipe = Recipe.default("digits", weights=finished.path).replace(epochs=1, batch_size=256, precision="fp32")
    result = fit(recipe, out=tmp_path / "run", callbacks=[console(text)])
    assert re.search(r"^weights +.*tensors taken, the head is that of the weights$", text.getvalue(), re.MULTILINE)
    assert result.metrics["val_accuracy"] > finished.result.metrics["val_accuracy"]


def moved(before, after):
    """Which parts changed at all, and which are the same to the bit."""
    names = {name: not torch.equal(after[name], value) for name, value in before.items() if name in after}
    parts = {name: name.partition(".")[0] for name in names}
    return {part: {changed for name, changed in names.items() if parts[name] == part} for part in set(parts.values())}


def test_frozen_parts_and_their_norms_are_those_of_the_weights_to_the_bit(weights, image_folder, tmp_path):
    root = image_folder(side=8, train=10)
    text = io.StringIO()
    fit(
        started(root, weights, **{"finetune.freeze": 2, "epochs": 3, "average.window": 0.5}),
        out=tmp_path / "run",
        callbacks=[console(text)],
    )
    found = moved(tensors(weights), tensors(tmp_path / "run"))
    assert found["conv1"] == found["bn1"] == found["layer1"] == {False}
    assert found["layer2"] == {True}
    assert re.search(r"^frozen +stem, layer1, for the whole run$", text.getvalue(), re.MULTILINE)
    # Two blocks: 0.9 for each layer below the head, which has ten times the rate; the frozen parts have none.
    assert re.search(r"^rates +at their highest: head 0.1, layer2 0.0081 to 0.009$", text.getvalue(), re.MULTILINE)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon"])
def test_thawed_parts_learn_again_with_every_optimizer(weights, image_folder, tmp_path, name):
    root = image_folder(side=8, train=10)
    momentum = {"optimizer.momentum": 0.9, "optimizer.nesterov": True}
    recipe = started(root, weights, **{"finetune.freeze": 3, "finetune.thaw": 0.5, "optimizer.layer_decay": 1.0})
    fit(recipe.replace({"optimizer.name": name} | momentum), out=tmp_path / "run", callbacks=[])
    found = moved(tensors(weights), tensors(tmp_path / "run"))
    assert all(part == {True} for part in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 9])  # six steps an epoch: frozen, and thawed
def test_a_resumed_run_needs_no_weights_and_ends_the_same(weights, image_folder, tmp_path, each_step, after):
    recipe = started(image_folder(side=8), weights, **{"finetune.freeze": 2, "finetune.thaw": 1, "average.window": 0.3})
    fit(recipe, out=tmp_path / "whole", callbacks=[])
    stopped = fit(recipe, out=tmp_path / "cut", callbacks=[StopAfter(after)])
    assert stopped.stopped_by == signal.SIGTERM
    weights.unlink()
    resume(tmp_path / "cut", callbacks=[])
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_recipe_of_a_run_keeps_where_the_weights_were_from_and_what_they_were(
    weights, image_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fit(started(image_folder(side=8), weights.name, epochs=1), out=tmp_path / "run", callbacks=[])
    recipe = Run(tmp_path / "run").read()[0]
    assert recipe.finetune.weights == str(weights)
    assert re.fullmatch("[0-9a-f]{64}", recipe.finetune.sha256)
    model = network()
    model.fc.reset_parameters()
    residuum.save(model, weights)
    with pytest.raises(WeightsError, match="has changed since the recipe was written"):
        fit(recipe, out=tmp_path / "other", callbacks=[])
    assert not (tmp_path / "other").exists()


def test_small_images_in_memory_are_scaled_to_what_the_weights_want(weights, tmp_path):
    look = Preprocessing(3, (16, 16), LOOK.mean, LOOK.std, 0.9)
    model = network()
    model.preprocessing = look
    residuum.save(model, weights)
    recipe = started("digits", weights, epochs=1, batch_size=256)
    assert recipe.data.image_size == (16, 16)
    fit(recipe, out=tmp_path / "run", callbacks=[])
    saved = residuum.load(tmp_path / "run").preprocessing
    assert (saved.image_size, saved.crop, saved.channels) == ((16, 16), 0.0, 1)
    assert saved.mean == pytest.approx((0.5,))  # of the three


def test_an_estimate_starts_from_weights_too(weights, image_folder):
    found = estimate(started(image_folder(side=8), weights, **{"finetune.freeze": 3}))
    assert {"frozen", "rates"} <= set(found.facts)
    assert found.steps == 5
    assert "the head is new, of 3 classes" in found.facts["weights"]


def test_a_step_with_frozen_parts_leaves_them_no_gradient_and_no_momentum():
    from residuum.nn.freezing import freeze_parts, unfreeze

    model = freeze_parts(network(), 2).train()
    optimizer = make_optimizer(model, OptimizerSettings(lr=0.1))
    set_learning_rate(optimizer, 0.1)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    train_step(model, optimizer, images, labels)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None and p not in optimizer.state for p in frozen)
    assert isinstance(model.bn1, FrozenBatchNorm)
    unfreeze(model)
    train_step(model, optimizer, images, labels)
    assert all("momentum_buffer" in optimizer.state[p] for p in model.parameters())
