"""What a run would take, without one."""

import re

import pytest
import torch
from tests.train.runs import tiny

from residuum.memory import kept_bytes
from residuum.train import Execution
from residuum.train.estimate import estimate
from residuum.train.session import make_network


@pytest.fixture(scope="module")
def found():
    return estimate(tiny())


def test_it_writes_nothing_and_leaves_random_numbers_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    estimate(tiny())
    assert not [*tmp_path.iterdir()]
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_and_images_are_those_of_the_run(found, finished):
    line = next(line for line in finished.out.splitlines() if line.startswith("data"))
    assert f"{found.train_images:,} train, {found.val_images:,} val" in line
    assert found.steps == found.train_images // 256


def test_time_is_that_of_all_steps_and_of_evaluation(found):
    assert found.seconds > 2 * found.steps * found.step_seconds > 0


def test_memory_counts_what_a_step_keeps(found):
    network = make_network(tiny().model, torch.device("cpu"), "fp32")
    kept = kept_bytes(network, torch.zeros(256, 1, 8, 8))
    assert kept < found.memory < 2 * kept


@pytest.mark.slow
def test_a_budget_is_what_a_step_is_made_to_fit(found):
    assert estimate(tiny(), Execution(memory="100GB")).memory <= found.memory


def test_the_curve_has_the_highest_rate_of_each_part(found):
    assert len(found.curve(4)) == 4
    assert max(found.curve(48)) == found.recipe.optimizer.lr
    assert len(found.curve(48)) == 2 * found.steps  # no part is shorter than a step


def test_the_share_of_waiting_is_one(found):
    assert 0 < found.waiting < 1


def test_without_mixing_there_is_no_target_to_show(found):
    assert found.target == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"mixing.mixup": 0.5}, r"0\.\d+ '\d', 0\.\d+ '\d', 0\.005 each of 8 others"),
        ({"mixing.cutmix": 1.0, "loss.label_smoothing": 0.0}, r"0\.\d+ '\d', 0\.\d+ '\d', 0\.000 each of 8 others"),
        (
            {"mixing.mixup": 0.5, "loss.name": "bce", "loss.threshold": 0.0, "loss.label_smoothing": 0.1},
            r"0\.910 '\d', 0\.910 '\d', 0\.010 each of 8 others",
        ),
    ],
)
def test_the_target_of_a_mixed_image_is_shown_as_the_loss_takes_it(changes, pattern):
    target = estimate(tiny(**changes)).target
    assert re.fullmatch(pattern, target), target
    if "bce" not in changes.values():
        shares = [float(number) for number in re.findall(r"0\.\d+", target)]
        assert shares[0] + shares[1] + 8 * shares[2] == pytest.approx(1, abs=0.01)


def test_learning_rates_are_told_at_the_first_the_highest_and_the_last_step(found):
    rates = dict(found.rates())
    assert {1, 2 * found.steps} <= rates.keys()
    assert max(rates.values()) == found.recipe.optimizer.lr
