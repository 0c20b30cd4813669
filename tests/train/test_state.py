"""What is checkpointed: everything that going on needs, in tensors and plain values, and nothing else."""

import copy

import pytest
import torch
from torch import Tensor

from residuum import ResNet, preset
from residuum.errors import RunError
from residuum.train.optim import make_average, make_optimizer
from residuum.train.recipe import AverageSettings, OptimizerSettings
from residuum.train.state import State, checksum
from residuum.train.step import train_step


def state(*, average=True, width=0.25, steps=2):
    torch.manual_seed(0)
    network = ResNet(preset("digits_resnet").replace(width=width))
    made = State(
        network,
        make_optimizer(network, OptimizerSettings()),
        make_average(network, AverageSettings(0.5), 10) if average else None,
    )
    made.progress.begin_epoch(5, torch.device("cpu"))
    train(made, steps)
    return made


def train(made, steps):
    generator = torch.Generator().manual_seed(made.progress.step)
    for _ in range(steps):
        images, labels = torch.randn(4, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3])
        loss, correct = train_step(made.network, made.optimizer, images, labels)
        if made.average is not None:
            made.average.update_parameters(made.network)
        made.progress.losses[made.progress.step] = loss
        made.progress.correct += correct
        made.progress.step += 1


def leaves(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def test_a_state_goes_on_as_if_it_had_never_been_put_away(tmp_path):
    whole, cut, other = state(steps=2), state(steps=2), state(steps=0)
    torch.save(cut.to_dict(), tmp_path / "state.pt")
    other.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for made in (whole, other):
        train(made, 2)
    assert checksum(other.to_dict()) == checksum(whole.to_dict())


def test_it_holds_tensors_and_plain_values_alone_and_no_wrappers_names():
    values = state().to_dict()
    kinds = {type(leaf) for leaf in leaves(values)}
    assert kinds <= {Tensor, torch.nn.Parameter, int, float, str, type(None)}
    names = [name for table in ("network", "optimizer", "average") for name in values[table]]
    assert not [name for name in names if name.startswith(("module.", "_orig_mod."))]
    assert not [name for name in values if "random" in name or "rng" in name]


def test_the_average_and_its_count_come_back():
    made, other = state(), state(steps=0)
    other.restore(made.to_dict())
    assert int(other.average.n_averaged) == 2
    assert torch.equal(other.result.fc.weight, made.average.module.fc.weight)
    assert not torch.equal(other.result.fc.weight, other.network.fc.weight)


def test_without_an_average_the_network_itself_is_the_result():
    made = state(average=False)
    assert made.result is made.network


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v["network"].pop("fc.bias"),
        lambda v: v["optimizer"].pop("fc.bias"),
        lambda v: v["optimizer"]["fc.bias"].update(momentum_buffer=torch.zeros(3)),
        lambda v: v["progress"].pop("epoch"),
        lambda v: v.update(average=None),
        lambda v: v.update(network=3),
    ],
)
def test_a_state_of_something_else_is_refused(spoil):
    values = copy.deepcopy(state().to_dict())
    spoil(values)
    with pytest.raises(RunError, match="does not fit this run's recipe"):
        state(steps=0).restore(values)


def test_a_state_of_another_network_is_refused():
    with pytest.raises(RunError, match="does not fit"):
        state(width=0.5, steps=0).restore(state().to_dict())


def test_the_checksum_sees_a_single_bit():
    values = state().to_dict()
    before = checksum(values)
    values["network"]["fc.bias"].data.view(torch.int32)[0] ^= 1
    assert checksum(values) != before
    assert values["sha256"] == before
