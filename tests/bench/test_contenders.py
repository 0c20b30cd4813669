"""The contenders: each builds the network that is asked for, and takes part where it has it."""

import sys
from importlib.util import find_spec

import pytest
import torch

import residuum
from residuum.bench.contenders import (
    OUT_OF_THE_BOX,
    PACKAGES,
    Contender,
    absent,
    build,
    contender_of,
    contenders_of,
    usual_contenders,
)
from residuum.bench.run import taking_part
from residuum.bench.workloads import Workload, workloads_of
from residuum.errors import BenchError, MissingExtraError

MINE = """
from torch import nn

def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))

class Net(nn.Linear):
    def __init__(self, preset, features=5):
        super().__init__(features, 2)
        self.preset = preset

number = 3

def gives_no_network():
    return 3
"""


def workload(model="resnet18", task="train", precision="fp32", memory_format="nchw", mode="eager"):
    return Workload(model, task, precision, memory_format, mode, 2, (64, 64))


@pytest.mark.parametrize("name", PACKAGES)
def test_each_builds_a_resnet18_of_the_same_size(name):
    pytest.importorskip(PACKAGES[name])
    model = build(Contender(name), "resnet18").eval()
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_who_has_no_such_network_says_so():
    assert absent(Contender("torchvision"), workload("cifar_resnet20")) == "it has no cifar_resnet20"
    assert absent(Contender("transformers"), workload("resnext50_32x4d")) == "it has no resnext50_32x4d"
    assert absent(Contender("residuum"), workload("cifar_resnet20")) is None
    assert absent(Contender("residuum:block"), workload(task="infer")) is not None
    assert absent(Contender("residuum:block"), workload(mode="compiled")) is not None
    if find_spec("timm"):
        assert absent(Contender("timm"), workload("resnext50_32x4d")) is None


def test_contenders_are_those_named_or_all_libraries_that_are_installed_with_the_baseline_among_them():
    named = contenders_of(("residuum", "torchvision", "residuum"), "torchvision")
    assert named == (Contender("residuum"), Contender("torchvision"))
    assert contenders_of((), "residuum") == tuple(usual_contenders())
    assert {Contender("residuum"), Contender(OUT_OF_THE_BOX), Contender("torchvision")} <= set(usual_contenders())
    with pytest.raises(BenchError, match="the baseline 'timm' is not one of the contenders"):
        contenders_of(("residuum",), "timm")
    with pytest.raises(BenchError, match="did you mean 'torchvision'"):
        contender_of("torchvison")


def test_a_library_that_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(PACKAGES, "timm", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"residuum-nn\[bench\]"):
        contender_of("timm")


def test_a_network_of_ones_own_is_named_by_file_or_module_and_made_by_a_call(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for text in ("mine=mine.py:build", f"mine={tmp_path / 'mine.py'}:build", "mine=mine:build"):
        contender = contender_of(text)
        assert contender.name == "mine"
        assert build(contender, "resnet18")(torch.zeros(1, 3, 8, 8)).shape == (1, 1000)
        assert absent(contender, workload()) is None
    assert contender_of("mine.py:Net").name == "Net"
    assert build(contender_of("mine.py:Net"), "resnet18").preset == "resnet18"
    theirs = build(contender_of("plain=torchvision.models:get_model"), "resnet18")
    assert sum(p.numel() for p in theirs.parameters()) == 11_689_512


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mine", "there is no contender 'mine'; the contenders are"),
        ("residuum:blok", "there is no contender 'residuum:blok'; did you mean 'residuum:block'"),
        ("mine.py:absent", "cannot be imported"),
        ("none.py:build", "there is no file none.py"),
        ("no.such.module:build", "cannot be imported"),
        ("mine.py:number", "is a int; it must be a callable"),
        ("broken.py:build", "cannot be imported (ZeroDivisionError"),
        ("=mine.py:build", "mine"),
    ],
)
def test_a_network_that_cannot_be_imported_is_refused_in_one_sentence(text, says, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text.startswith("="):
        assert contender_of(text).name == "build"
        return
    with pytest.raises(BenchError) as refused:
        contender_of(text)
    assert says in str(refused.value)


def test_what_gives_no_network_and_two_of_one_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BenchError, match="gave a int"):
        build(contender_of("mine.py:gives_no_network"), "resnet18")
    for second in ("a=mine.py:Net", "torchvision=mine.py:Net"):
        with pytest.raises(BenchError, match="the name of two contenders"):
            contenders_of(("torchvision", "a=mine.py:build", second), "torchvision")


def test_what_runs_as_it_likes_is_measured_once_for_each_network_task_and_batch():
    workloads = workloads_of(
        ["resnet18"], ["train", "infer"], ["fp32", "bf16"], [], ["eager"], [8], None, torch.device("cpu")
    )
    auto = Contender(OUT_OF_THE_BOX)
    parts = taking_part(workloads, (Contender("residuum"), auto))
    assert [auto in part for part in parts] == [True, False, True, False]
    assert all(Contender("residuum") in part for part in parts)


@pytest.mark.slow
def test_hugging_faces_network_is_ours_with_its_layers_named_otherwise():
    pytest.importorskip("transformers")
    theirs = build(Contender("transformers"), "resnet18").eval()
    ours = residuum.create("resnet18").eval()
    residuum.load_weights(ours, theirs.model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
