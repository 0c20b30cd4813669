"""The steps that are timed: each does what it says, again and again."""

import pytest
import torch

from residuum.bench import steps
from residuum.bench.contenders import OUT_OF_THE_BOX, REFERENCES, Contender
from residuum.bench.steps import prepare
from residuum.bench.workloads import Workload, step_flops


def workload(task="train", precision="fp32", memory_format="nchw", batch_size=2):
    return Workload("digits_resnet", task, precision, memory_format, "eager", batch_size, (16, 16))


@pytest.mark.parametrize("task", ["train", "infer"])
@pytest.mark.parametrize("name", ["residuum", "residuum:block", OUT_OF_THE_BOX, *REFERENCES])
def test_each_gets_ready_for_its_step_and_does_it_again_and_again(name, task, monkeypatch):
    monkeypatch.setattr(steps, "matrix_side", lambda kind: 64)  # minutes in bf16 where a processor has none
    step = prepare(Contender(name), workload(task, "bf16", "channels-last"))
    for _ in range(2):
        step.run()
    step.passes()
    assert step.tensors()
    assert step.precision == "bf16" or name in (OUT_OF_THE_BOX, "matmul:fp32")


@pytest.mark.parametrize("name", ["residuum", OUT_OF_THE_BOX])
def test_one_image_is_enough_for_a_step(name):
    step = prepare(Contender(name), workload(batch_size=1))
    step.run()
    step.passes()


def test_training_steps_change_the_weights_and_inference_does_not():
    for task in ("train", "infer"):
        step = prepare(Contender("residuum"), workload(task))
        before = [tensor.clone() for tensor in step.tensors()]
        step.run()
        same = all(torch.equal(a, b) for a, b in zip(before, step.tensors(), strict=False))
        assert same == (task == "infer")


@pytest.mark.parametrize("task", ["train", "infer"])
def test_a_network_from_outside_tells_the_work_of_its_step(task):
    asked = workload(task)
    same = prepare(Contender("plain", "residuum:create"), asked)
    assert same.flops == step_flops(asked)
    assert prepare(Contender("residuum"), asked).flops is None
