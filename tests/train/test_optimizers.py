"""LAMB and Muon: the same steps as timm's, on any memory format, and state that a checkpoint can hold."""

import copy
import io
from functools import partial

import pytest
import timm.optim.muon
import torch
from timm.optim.lamb import Lamb as TimmLamb
from timm.optim.muon import Muon as TimmMuon

from residuum.train.optimizers import _COEFFICIENTS, Lamb, Muon, orthogonalised, suits_muon

SHAPES = {"conv": (16, 8, 3, 3), "tall": (32, 4, 1, 1), "stem": (8, 3, 7, 7), "fc": (10, 16), "norm": (16,), "one": ()}
STEPS = 50


def weights(seed=0, channels_last=False):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if channels_last:
        values = {
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in values.items()
        }
    return {name: torch.nn.Parameter(value) for name, value in values.items()}


def train(optimizer, parameters, steps=range(STEPS)):
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for p in parameters.values():
            gradient = torch.randn(p.shape, generator=generator) * (10.0 if step % 2 else 0.01)
            p.grad = torch.empty_like(p).copy_(gradient)  # in the parameter's memory format
        optimizer.step()
    return parameters


def difference(ours, theirs):
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def two_groups(parameters):
    decayed = [p for p in parameters.values() if p.ndim > 1]
    return [
        {"params": decayed, "weight_decay": 0.02},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]


def convolutions_apart(parameters, mark, weight_decay=0.0):
    convolutions = [p for p in parameters.values() if p.ndim == 4]
    rest = [p for p in parameters.values() if p.ndim != 4]
    return [
        {"params": convolutions, mark: True, "weight_decay": weight_decay},
        {"params": rest, mark: False, "weight_decay": weight_decay},
    ]


def lamb(parameters, **more):
    return Lamb(two_groups(parameters), lr=5e-3, **more)


def muon(parameters, **more):
    return Muon(convolutions_apart(parameters, "orthogonal", 0.01), lr=0.01, momentum=0.9, **more)


MAKERS = {"lamb": lamb, "muon": muon}


@pytest.mark.parametrize("clip", [1.0, None, 0.1])
def test_lamb_takes_timms_steps(clip):
    ours, theirs = weights(), weights()
    train(lamb(ours, clip=clip), ours)
    train(TimmLamb(two_groups(theirs), lr=5e-3, max_grad_norm=clip), theirs)
    assert difference(ours, theirs) <= 1e-6
    assert difference(ours, weights()) > 1e-2


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_takes_timms_steps_on_convolutions_and_torchs_sgd_on_the_rest(nesterov, monkeypatch):
    exact = partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float32)  # timm's own rounds to bf16
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", exact)
    ours, theirs = weights(), weights()
    train(muon(ours, nesterov=nesterov), ours)
    convolutions, rest = convolutions_apart(theirs, "use_muon", 0.01)
    of_timm = TimmMuon([convolutions], lr=0.01, momentum=0.9, nesterov=nesterov)
    of_torch = torch.optim.SGD(rest["params"], lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    for step in range(STEPS):
        train(of_timm, theirs, [step])
        of_torch.step()
    convolved = [name for name, shape in SHAPES.items() if len(shape) == 4]
    assert difference({n: ours[n] for n in convolved}, theirs) <= 1e-6
    assert all(torch.equal(ours[n], theirs[n]) for n in SHAPES if n not in convolved)


@pytest.mark.parametrize("name", MAKERS)
def test_channels_last_weights_take_the_same_steps_and_stay_channels_last(name):
    plain, last = weights(), weights(channels_last=True)
    train(MAKERS[name](plain), plain)
    optimizer = MAKERS[name](last)
    train(optimizer, last)
    assert difference(plain, last) <= 1e-6
    for state in (optimizer.state[last["conv"]], {"itself": last["conv"]}):
        tensors = [t for t in state.values() if t.ndim == 4]
        assert tensors
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_whose_state_was_saved_and_loaded_goes_on_bit_equal(name):
    through = train(MAKERS[name](p := weights()), p, range(8))
    halted = weights()
    first = MAKERS[name](halted)
    train(first, halted, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = MAKERS[name](halted)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(second, halted, range(4, 8))
    assert all(torch.equal(through[n], halted[n]) for n in SHAPES)


@pytest.mark.parametrize("name", MAKERS)
def test_state_and_steps_of_fp32_weights_hold_no_other_floats(name):
    parameters = weights()
    optimizer = MAKERS[name](parameters)
    train(optimizer, parameters, range(2))
    assert {t.dtype for state in optimizer.state.values() for t in state.values()} == {torch.float32}


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_without_gradients_stay_and_cost_no_state(name):
    parameters = weights()
    optimizer = MAKERS[name](parameters)
    before = copy.deepcopy(parameters)
    for p in parameters.values():
        p.grad = None
    parameters["fc"].grad = torch.ones_like(parameters["fc"])
    optimizer.step()
    assert len(optimizer.state) == 1
    assert all(torch.equal(parameters[n], before[n]) for n in SHAPES if n != "fc")
    assert not torch.equal(parameters["fc"], before["fc"])


@pytest.mark.parametrize("name", MAKERS)
def test_zero_gradients_and_zero_weights_give_numbers(name):
    parameters = weights()
    with torch.no_grad():
        parameters["conv"].zero_()
    optimizer = MAKERS[name](parameters)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(p.isfinite().all() for p in parameters.values())


@pytest.mark.parametrize("name", MAKERS)
def test_a_closure_computes_the_loss_with_gradients(name):
    parameters = weights()
    optimizer = MAKERS[name](parameters)

    def closure():
        loss = sum(p.square().sum() for p in parameters.values())
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (5, 5)])
def test_orthogonalised_matrices_have_singular_values_near_one_and_keep_their_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix)
    assert found.shape == matrix.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    aligned = left.mT @ found @ right.mT
    assert (aligned - torch.diag(aligned.diag())).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (16, 24), (16, 25)])
@pytest.mark.parametrize("decades", [0, 3, 6])
def test_orthogonalised_is_what_all_iterations_give_in_double_precision(shape, decades):
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -decades, min(shape))) @ right
    x = matrix.double() / torch.linalg.matrix_norm(matrix.double())
    for a, b, c in _COEFFICIENTS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    assert (orthogonalised(matrix) - x).norm() <= (1e-5 if decades == 0 else 1e-3) * x.norm()


def test_convolutions_suit_muon_but_not_depthwise_ones_long_rows_and_what_is_none():
    suits = {(64, 3, 7, 7): True, (64, 64, 1, 1): True, (64, 1, 3, 3): False, (3, 64, 3, 3): False,
             (4, 1024, 1, 1): False, (10, 64): False, (64,): False}  # fmt: skip
    assert {shape: suits_muon(torch.zeros(shape)) for shape in suits} == suits
