"""Every command and every snippet that README and docs show, run in the order in which they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTRACT = {"pip install . && residuum train": "residuum train", 'pip install -e ".[test]" && pytest': None}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_a_page_shows_works(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    Image.new("L", (8, 8), 128).save("digit.png")
    namespace = {}
    for kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif kind == "toml":
            named = re.match(r"# (\w+\.toml)\n", text)
            Path(named[1] if named else "recipe.toml").write_text(text, encoding="utf-8")
        else:
            assert kind == "sh", f"{page.name} shows a block of {kind}, which nothing runs"
            run_lines(text, command)


def run_lines(text, command):
    for shown in text.splitlines():
        line = CONTRACT.get(shown, shown)  # installing, and these tests themselves, are the installation's own proof
        if line is None:
            continue
        program, *arguments = shlex.split(line)
        assert program == "residuum", f"{line!r} is shown, but nothing runs it"
        result = command(*arguments)
        assert result.code == 0, f"{line}: {result.err}"


def test_every_linked_file_is_there():
    for page in [*PAGES, ROOT / "benchmarks" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_the_readme_shows_the_two_commands_of_an_installation():
    shown = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert all(line in shown for line in CONTRACT)
    assert shutil.which("residuum"), "the console script is not on the path"
