"""The loop: what it tells, when it saves, and that a loss that is no number is found and never saved."""

import math

import pytest
import torch
from tests.train.runs import tiny

from residuum.data.loaders import make_loader
from residuum.data.settings import Augmentation
from residuum.data.sources import Split
from residuum.errors import DataError, DivergedError
from residuum.preprocessing import Preprocessing
from residuum.train import Callback, loop
from residuum.train.optim import make_average, make_optimizer
from residuum.train.session import make_network
from residuum.train.state import State
from residuum.train.step import Counted, train_step

CPU = torch.device("cpu")


class Notes(Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.looks, self.rows, self.evaluations = [], [], []

    def look(self, snapshot):
        self.looks.append(snapshot)

    def evaluating(self, split, batch, batches):
        self.evaluations.append((split, batch, batches))

    def epoch(self, row, epochs):
        self.rows.append(dict(row))


def loader(images=40, batch_size=8, *, train=True):
    generator = torch.Generator().manual_seed(int(train))
    pixels = torch.randint(256, (images, 8, 8, 1), dtype=torch.uint8, generator=generator)
    return make_loader(
        Split(pixels, torch.randint(10, (images,), generator=generator)),
        Preprocessing(1, (8, 8), (0.5,), (0.25,), 0.0),
        batch_size=batch_size, seed=0, train=train, augmentation=Augmentation(), device=CPU, workers=0,
        skip_bad_images=False,
    )  # fmt: skip


def run(recipe=None, *, net=None, val=True, **more):
    """Train on random images; gives the state and how often it was saved, at which place."""
    recipe = recipe or tiny()
    torch.manual_seed(0)
    network = make_network(recipe.model, CPU, recipe.precision)
    train = loader()
    average = make_average(network, recipe.average, recipe.epochs * len(train))
    state = State(network, make_optimizer(network, recipe.optimizer), average)
    state.progress.begin_epoch(len(train), CPU)
    saves = []
    loop.train_epochs(
        state, net(network) if net else network, recipe, train, loader(20, train=False) if val else None,
        save=lambda: saves.append((state.progress.epoch, state.progress.step)), **more,
    )  # fmt: skip
    return state, saves


def test_every_epoch_is_told_and_saved(each_step):
    notes = Notes()
    state, saves = run(callbacks=[notes])
    assert [row["epoch"] for row in notes.rows] == [1, 2]
    assert notes.rows == state.progress.history
    assert saves == [(1, 0), (2, 0)]
    assert [(s.epoch, s.step) for s in notes.looks] == [(e, s) for e in range(2) for s in range(1, 6)]
    assert notes.evaluations == [("val", b, 3) for b in (1, 2, 3)] * 2


def test_without_a_validation_split_there_is_no_val_in_the_numbers():
    notes = Notes()
    run(callbacks=[notes], val=False)
    assert not [key for row in notes.rows for key in row if key.startswith(("val", "test"))]


def test_what_callbacks_are_told_are_numbers_but_for_the_digest_of_the_data(each_step):
    notes = Notes()
    run(callbacks=[notes])
    rows = [{name: value for name, value in row.items() if name != "data_digest"} for row in notes.rows]
    for told in [*(vars(s) for s in notes.looks), *rows]:
        assert {type(value) for value in told.values()} <= {int, float, dict, type(None)}
    assert {type(value) for s in notes.looks for value in s.seconds.values()} == {float}


class Diverging:
    """Steps whose loss is no number after so many; counts them."""

    def __init__(self, after, kind=torch.Tensor):
        self.after, self.kind, self.count = after, kind, 0

    def __call__(self, *args, **how):
        self.count += 1
        loss, correct = train_step(*args, **how)
        return Counted((loss if self.count <= self.after else loss * math.nan).as_subclass(self.kind), correct)


def test_a_loss_that_is_no_number_ends_the_run_at_its_step_with_nobody_listening(monkeypatch):
    monkeypatch.setattr(loop, "train_step", Diverging(6))
    with pytest.raises(DivergedError, match=r"nan in epoch 2, step 2 of 5.*last good state.*lower learning rate"):
        run()


class Elsewhere(torch.Tensor):
    """A loss that says it is on an accelerator, where reading it has to wait."""

    @property
    def device(self):
        return torch.device("cuda")


@pytest.mark.parametrize("every", [1, 2, 3])
def test_on_an_accelerator_it_is_found_every_few_steps(monkeypatch, every):
    steps = Diverging(6, Elsewhere)
    monkeypatch.setattr(loop, "train_step", steps)
    monkeypatch.setattr(loop, "LOOK_EVERY", 1e9)
    monkeypatch.setattr(loop, "LOOK_STEPS", every)
    with pytest.raises(DivergedError, match="epoch 2, step 2 of 5"):
        run()
    assert steps.count < 7 + every


def test_a_state_with_a_bad_loss_is_not_saved(monkeypatch):
    monkeypatch.setattr(loop, "train_step", Diverging(7, Elsewhere))
    monkeypatch.setattr(loop, "LOOK_EVERY", 1e9)
    saves = []
    with pytest.raises(DivergedError):
        loop_saves(saves, save_every=0.0)
    assert saves == [*((0, step) for step in range(1, 6)), (1, 0), (1, 1), (1, 2)]


def loop_saves(saves, **more):
    recipe = tiny()
    network = make_network(recipe.model, CPU, recipe.precision)
    train = loader()
    state = State(network, make_optimizer(network, recipe.optimizer))
    state.progress.begin_epoch(len(train), CPU)

    def save():
        assert state.progress.losses.isfinite().all()
        saves.append((state.progress.epoch, state.progress.step))

    loop.train_epochs(state, network, recipe, train, None, save=save, **more)


def test_a_wrapped_network_trains_to_the_very_same_weights():
    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    plain, wrapped = run()[0], run(net=Wrapped)[0]
    for one, two in zip(plain.network.state_dict().values(), wrapped.network.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_draws_depend_on_the_step_alone_and_not_on_what_was_drawn_before(each_step):
    class Draws(Callback):
        def look(self, snapshot):
            torch.rand(snapshot.step)

    plain, disturbed = run()[0], run(callbacks=[Draws()])[0]
    assert torch.equal(plain.network.fc.weight, disturbed.network.fc.weight)


def test_seeds_give_other_draws_in_the_network():
    one, two = (run(tiny(seed=seed))[0] for seed in (0, 1))  # the images' order is the loaders' own
    assert not torch.equal(one.network.fc.weight, two.network.fc.weight)


def test_it_is_the_average_that_is_evaluated():
    rows = [run(tiny(**{"average.window": window}))[0].progress.history for window in (0.0, 0.9)]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]
    assert rows[0][-1]["val_loss"] != rows[1][-1]["val_loss"]


def test_an_image_that_fails_does_not_cost_the_steps_before():
    class Failing:
        def __init__(self, inner):
            self.inner, self.schedule, self.skipped = inner, inner.schedule, set()

        def __len__(self):
            return len(self.inner)

        def epoch(self, number, start=0):
            for step, batch in enumerate(self.inner.epoch(number, start), start):
                if step == 3:
                    raise DataError("broken.jpg cannot be decoded")
                yield batch

    recipe, saves = tiny(), []
    network = make_network(recipe.model, CPU, recipe.precision)
    train = Failing(loader())
    state = State(network, make_optimizer(network, recipe.optimizer))
    state.progress.begin_epoch(len(train), CPU)
    with pytest.raises(DataError):
        loop.train_epochs(state, network, recipe, train, None, save=lambda: saves.append(state.progress.step))
    assert saves == [3]


def test_a_step_of_one_image_that_norms_cannot_take_is_refused_in_a_sentence():
    recipe = tiny(**{"model.depths": (1,) * 4, "model.widths": (8,) * 4})
    network = make_network(recipe.model, CPU, recipe.precision)
    state = State(network, make_optimizer(network, recipe.optimizer))
    state.progress.begin_epoch(1, CPU)
    with pytest.raises(DataError, match="step 1 of epoch 1 has one image.*--batch-size"):
        loop.step(state, network, recipe, torch.randn(1, 1, 8, 8), torch.tensor([0]), 1)


def test_mixed_images_are_trained_on_until_the_last_share_of_the_run(monkeypatch):
    seen = []

    def spy(net, optimizer, images, targets, **more):
        seen.append(targets)
        return train_step(net, optimizer, images, targets, **more)

    monkeypatch.setattr(loop, "train_step", spy)
    state, _ = run(tiny(**{"mixing.mixup": 0.2, "mixing.cutmix": 1.0, "mixing.off": 0.3}))
    assert [targets.ndim for targets in seen] == [2] * 7 + [1] * 3  # of five steps an epoch
    assert all(torch.allclose(targets.sum(1), torch.ones(8)) for targets in seen[:7])
    assert all(0 < row["train_accuracy"] < 1 for row in state.progress.history)


def test_mixing_is_drawn_anew_each_step_and_again_the_same_in_another_run(monkeypatch):
    shares = []
    monkeypatch.setattr(
        loop, "mix", lambda *batch, _mix=loop.mix, **more: shares.append((m := _mix(*batch, **more)).share) or m
    )
    for _ in range(2):
        run(tiny(**{"mixing.mixup": 1.0}))
    assert shares[:10] == shares[10:]
    assert len(set(shares[:10])) == 10
