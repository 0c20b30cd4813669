"""Importing the package is cheap, and its public names are there."""

import subprocess
import sys

import pytest

import residuum


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "module",
    ["residuum", "residuum.cli", "residuum.train.recipe", "residuum.presets", "residuum.evaluation.comparison"],
)
def test_importing_does_not_import_torch(module):
    assert run(f"import sys, {module}; print('torch' in sys.modules)") == "False"


def test_config_and_presets_are_reached_without_torch():
    code = "import sys, residuum; residuum.preset('resnet50').to_toml(); print('torch' in sys.modules)"
    assert run(code) == "False"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["residuum.evaluation.command", "residuum.export.command", "residuum.export.proof", "residuum.inference"]
)
def test_what_does_not_train_does_without_torchvision(module):
    code = f"import sys, {module}; print([name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])"
    assert run(code) == "[]"


def test_every_public_name_resolves_and_is_listed():
    for name in residuum.__all__:
        assert getattr(residuum, name) is not None
        assert name in dir(residuum)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = residuum.nothing
