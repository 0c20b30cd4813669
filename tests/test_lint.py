"""The sources are clean under the linter, the formatter and the type checker."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=["lint", "format", "types"]
)
def test_clean(command):
    oldest = re.search(r"^torch==(\d+\.\d+\.)", (ROOT / ".ci" / "oldest.txt").read_text(), re.MULTILINE)
    if command == ["mypy"] and version("torch").startswith(oldest[1]):
        pytest.skip("torch's annotations change from version to version; types are checked against the newest")
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
