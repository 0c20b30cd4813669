"""What is measured: every combination, checked, and the work in a step of it."""

import pytest
import torch

from residuum.bench.workloads import Workload, step_flops, workloads_of
from residuum.errors import BenchError, ConfigError

CPU = torch.device("cpu")


def test_workloads_are_every_combination_each_precision_in_the_format_that_suits_it():
    found = workloads_of(["resnet18"], ["train", "infer"], ["fp32", "bf16"], [], ["eager"], [1, 8], None, CPU)
    assert len(found) == len(set(map(str, found))) == 8
    assert {(w.precision, w.memory_format) for w in found} == {("fp32", "nchw"), ("bf16", "channels-last")}
    assert {w.image_size for w in found} == {(224, 224)}
    both = workloads_of(["resnet18"], ["train"], ["fp32"], ["nchw", "channels-last"], ["eager"], [1], None, CPU)
    assert len(both) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((["resnet18"], ["train"], ["fp32"], [], ["graph"], [8], None, CPU), BenchError),
        ((["resnet18"], ["train"], ["fp32"], [], ["eager"], [0], None, CPU), ConfigError),
        ((["resnet18"], ["train"], ["fp32"], [], ["eager"], [8], (0, 3), CPU), ConfigError),
        ((["resnet18"], ["train"], ["fp32"], [], ["eager"], [10**30], None, CPU), ConfigError),
        ((["resnet18"], ["train"], ["fp32"], [], ["eager"], [8], (2**40, 3), CPU), ConfigError),
        ((["resnet19"], ["train"], ["fp32"], [], ["eager"], [8], None, CPU), ConfigError),
    ],
)
def test_workloads_that_cannot_be_are_refused(arguments, error):
    with pytest.raises(error):
        workloads_of(*arguments)


@pytest.mark.slow
def test_a_training_step_of_resnet50_takes_three_times_its_forward_pass_less_the_gradient_of_the_images():
    infer, train = (
        step_flops(Workload("resnet50", task, "fp32", "nchw", "eager", 1, (224, 224))) for task in ("infer", "train")
    )
    assert infer == pytest.approx(8.18e9, rel=0.001)
    stem = 2 * 112 * 112 * 64 * 3 * 7 * 7
    assert train == 3 * infer - stem


def test_the_work_is_known_where_one_image_leaves_the_norms_a_single_value():
    one = Workload("resnet18", "infer", "fp32", "nchw", "eager", 1, (32, 32))
    many = Workload("resnet18", "infer", "fp32", "nchw", "eager", 6, (32, 32))
    assert 6 * step_flops(one) == step_flops(many)
