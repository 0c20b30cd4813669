"""In-place work is chosen from outside, changes no number, and predicted peaks follow it."""

import pytest
import torch
from tests.memory.test_planner import measured_peak

from residuum import ResNetConfig, create
from residuum.memory import MODES, Live, Planner, Speed, choose_in_place, set_in_place

FIELDS = {"depths": (2, 2), "widths": (8, 16), "stem_width": 8, "num_classes": 10, "attention": "se"}


@pytest.mark.parametrize(
    ("dtype", "slow", "expected"),
    [(torch.float32, True, True), (torch.bfloat16, True, False), (torch.bfloat16, False, True)],
)
def test_what_is_slow_in_place_is_not_done_in_place(monkeypatch, dtype, slow, expected):
    monkeypatch.setattr("residuum.memory.in_place.slow_in_place", lambda device, kind: slow and kind == torch.bfloat16)
    model = create(ResNetConfig(**FIELDS))
    assert choose_in_place(model, torch.device("cpu"), dtype) is expected
    block = model.layer1[0]
    assert {model.act1.inplace, block.inplace, block.act1.inplace, block.se.act.inplace} == {expected}


@pytest.mark.slow
@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_predicted_peaks_follow_the_choice(preact, mode):
    torch.manual_seed(0)
    model = create(ResNetConfig(**FIELDS | {"attention": "none"}, preact=preact))
    fixed = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    losses, peaks = [], []
    for in_place in (True, False):
        set_in_place(model, in_place)
        chosen = Planner(model, image_size=(48, 40), optimizer="none", speed=Speed(4e11, 2e10)).uniform(3, mode)
        torch.manual_seed(1)
        measured = measured_peak(chosen.apply(model), 3, (48, 40), None)
        assert measured <= chosen.peak - fixed <= 1.05 * measured
        losses.append([p.grad.clone() for p in model.parameters()])
        peaks.append(measured)
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    assert peaks[0] <= peaks[1]


def test_without_in_place_work_inference_takes_no_more_memory():
    images = torch.randn(2, 3, 64, 64)
    peaks = []
    for in_place in (True, False):
        model = create("resnet18").eval()
        set_in_place(model, in_place)
        with torch.inference_mode(), Live() as live:
            live.leave_out([*model.parameters(), *model.buffers(), images])
            model(images)
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]
