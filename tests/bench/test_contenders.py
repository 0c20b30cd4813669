"""The contenders: each builds the network that is asked for, and takes part where it has it."""

from importlib.util import find_spec

import pytest
import torch

import residuum
from residuum.bench.contenders import (
    OUT_OF_THE_BOX,
    PACKAGES,
    REFERENCES,
    Cell,
    absent,
    build,
    check_contenders,
    prepare,
    usual_contenders,
)
from residuum.bench.run import cells_of, contenders_of, taking_part
from residuum.errors import BenchError, ConfigError

CPU = torch.device("cpu")


def cell(model="resnet18", task="train", precision="fp32", layout="nchw", mode="eager"):
    return Cell(model, task, precision, layout, mode, 2, (64, 64))


@pytest.mark.parametrize("name", PACKAGES)
def test_each_builds_a_resnet50_of_the_same_size(name):
    pytest.importorskip(PACKAGES[name])
    model = build(name, "resnet50").eval()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("task", ["train", "infer"])
@pytest.mark.parametrize("name", ["residuum", "residuum:block", OUT_OF_THE_BOX, "torchvision", *REFERENCES])
def test_each_gets_ready_for_its_step_and_does_it_again_and_again(name, task):
    step = prepare(name, cell(task=task, precision="bf16", layout="channels-last"))
    for _ in range(2):
        step.run()
    step.passes()
    assert step.tensors()
    assert step.precision == "bf16" or name in (OUT_OF_THE_BOX, "matmul:fp32")


def test_training_steps_change_the_weights_and_inference_does_not():
    for task in ("train", "infer"):
        step = prepare("residuum", cell(task=task))
        before = [tensor.clone() for tensor in step.tensors()]
        step.run()
        same = all(torch.equal(a, b) for a, b in zip(before, step.tensors(), strict=False))
        assert same == (task == "infer")


def test_who_has_no_such_network_says_so():
    assert absent("brute_force", cell("resnet18")) == "brute_force has no resnet18"
    assert absent("brute_force", cell("resnet50")) is None
    assert absent("torchvision", cell("cifar_resnet20")) == "torchvision has no cifar_resnet20"
    assert absent("transformers", cell("resnext50_32x4d")) == "transformers has no resnext50_32x4d"
    assert absent("residuum", cell("cifar_resnet20")) is None
    assert absent("residuum:block", cell(task="infer")) is not None
    assert absent("residuum:block", cell(mode="compiled")) is not None
    if find_spec("timm"):
        assert absent("timm", cell("resnext50_32x4d")) is None


def test_contenders_are_those_named_or_all_that_are_installed_with_the_baseline_among_them():
    assert contenders_of(("residuum", "torchvision", "residuum"), "torchvision") == ("residuum", "torchvision")
    assert contenders_of((), "residuum") == usual_contenders()
    assert {"brute_force", "residuum", OUT_OF_THE_BOX, "torchvision"} <= set(usual_contenders())
    with pytest.raises(BenchError, match="the baseline timm does not take part"):
        contenders_of(("residuum",), "timm")
    with pytest.raises(BenchError, match="did you mean 'torchvision'"):
        check_contenders(("torchvison",))


def test_cells_are_every_combination_each_precision_in_the_layout_that_suits_it():
    cells = cells_of(["resnet18"], ["train", "infer"], ["fp32", "bf16"], [], ["eager"], [1, 8], None, CPU)
    assert len(cells) == len(set(map(str, cells))) == 8
    assert {(c.precision, c.layout) for c in cells} == {("fp32", "nchw"), ("bf16", "channels-last")}
    assert {c.size for c in cells} == {(224, 224)}
    assert len(cells_of(["resnet18"], ["train"], ["fp32"], ["nchw", "channels-last"], ["eager"], [1], None, CPU)) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((["resnet18"], ["train"], ["fp32"], [], ["graph"], [8], None, CPU), BenchError),
        ((["resnet18"], ["train"], ["fp32"], [], ["eager"], [0], None, CPU), ConfigError),
        ((["resnet18"], ["train"], ["fp32"], [], ["eager"], [8], (0, 3), CPU), ConfigError),
        ((["resnet19"], ["train"], ["fp32"], [], ["eager"], [8], None, CPU), ConfigError),
    ],
)
def test_cells_that_cannot_be_are_refused(arguments, error):
    with pytest.raises(error):
        cells_of(*arguments)


def test_what_runs_as_it_likes_is_measured_once_for_each_network_task_and_batch():
    cells = cells_of(["resnet18"], ["train", "infer"], ["fp32", "bf16"], [], ["eager"], [8], None, CPU)
    parts = taking_part(cells, ("residuum", OUT_OF_THE_BOX))
    assert [OUT_OF_THE_BOX in part for part in parts] == [True, False, True, False]
    assert all("residuum" in part for part in parts)


def test_hugging_faces_network_is_ours_with_its_layers_named_otherwise():
    pytest.importorskip("transformers")
    theirs = build("transformers", "resnet18").eval()
    ours = residuum.create("resnet18").eval()
    residuum.load_weights(ours, theirs.model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
