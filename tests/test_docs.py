"""The documentation: all that README and docs show is run, links lead somewhere, the site builds, tables are true."""

import json
import pkgutil
import re
import resource
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image
from scripts.reference import MADE_OF

import residuum
from tests.warm import start_contenders_warm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FRONT = (DOCS / "index.md", ROOT / "README.md")
CONTRACT = {"pip install . && residuum train": "residuum train", 'pip install -e ".[test]" && pytest': None}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OBJECT = re.compile(r"^::: (residuum\.\S+)$", re.MULTILINE)
ROOMS = ("train", "memory", "export", "nn", "data", "weights", "evaluation", "ablate", "bench")


def read(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def shows_something(page):
    return page.parent != DOCS / "reference" and any(kind != "toml" for kind, _ in FENCE.findall(read(page)))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if shows_something(page)], ids=name_of)
def test_everything_that_a_page_shows_works(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    start_contenders_warm(monkeypatch)
    Image.new("L", (8, 8), 128).save("digit.png")
    namespace = {}
    for kind, text in FENCE.findall(read(page)):
        if kind == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif kind == "toml":
            named = re.match(r"# (\w+\.toml)\n", text)
            Path(named[1] if named else "recipe.toml").write_text(text, encoding="utf-8")
        else:
            assert kind == "sh", f"{name_of(page)} shows a block of {kind}, which nothing runs"
            run_lines(text, command)
    for drawing in re.findall(r"^!\[.*\]\((.+\.svg)\)$", read(page), re.MULTILINE):
        assert drawn(Path(Path(drawing).name)) == drawn(page.parent / drawing), f"draw {drawing} anew"


def drawn(path):
    """A drawing without what another version of matplotlib may write otherwise: names of parts, digits of places."""
    plain = re.sub(r"\bid=\"\w+\"|#\w{10,}", "", read(path))
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", plain)


def run_lines(text, command):
    for shown in text.splitlines():
        line = CONTRACT.get(shown, shown)  # installing, and these tests themselves, are the installation's own proof
        if line is None:
            continue
        program, *arguments = shlex.split(line)
        assert program == "residuum", f"{line!r} is shown, but nothing runs it"
        result = command(*arguments)
        assert result.code == 0, f"{line}: {result.err}"
        if shown in CONTRACT:  # the main job: a network of the digits that is as good as it should be
            rows = Path("runs", "digits-1", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            assert json.loads(rows[-1])["test_accuracy"] >= 0.985
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20


def test_every_link_leads_to_a_file_that_is_there_and_a_heading_in_it():
    for page in {*PAGES, *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"}:
        for target in LINK.findall(FENCE.sub("", read(page))):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            other = page.parent / path if path else page
            assert other.exists(), f"{name_of(page)} links {target}"
            assert not anchor or anchor in anchors(other), f"{name_of(page)} links {target}"


def anchors(page):
    """The anchors of a page's headings, as code hosts and the site make them, and of what its reference describes."""
    text = FENCE.sub("", read(page))
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text))
    return {*headings, *OBJECT.findall(text)}


def test_the_comparison_on_the_first_page_is_that_of_the_readme():
    first, readme = ([line for line in read(page).splitlines() if "noise" in line or "100 %" in line] for page in FRONT)
    rows = [line for line in first if line.startswith("|")]
    assert rows == [line for line in readme if line.startswith("|")] != []


def test_every_page_is_in_the_sites_navigation_once():
    found = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(found) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_every_public_name_has_one_place_in_the_reference():
    shown = [name for page in sorted((DOCS / "reference").glob("*.md")) for name in OBJECT.findall(read(page))]
    assert len(shown) == len(set(shown))
    for name in residuum.__all__:
        assert f"residuum.{name}" in shown, f"a page of docs/reference needs a line '::: residuum.{name}'"


def test_a_name_of_torchvision_or_timm_on_a_page_is_one_of_theirs():
    for page in PAGES:
        for name in re.findall(r"`((?:timm|torchvision)(?:\.[A-Za-z_]\w*)+)[(`]", FENCE.sub("", read(page))):
            pkgutil.resolve_name(name)


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * (p.suffix == ".csv")) for p in MADE_OF], ids=lambda p: p.name
)
def test_a_table_that_is_made_is_what_the_sources_say(path):
    assert MADE_OF[path]() == read(path), "make it anew: python -m scripts.reference"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_fetches_nothing_and_has_what_the_pages_import(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(build, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "WARNING -" not in result.stderr
    assert (tmp_path / "site" / "search" / "search_index.js").exists()  # found by a page that is opened as a file

    fetched = re.compile(r"""<(?:link|script|img|iframe)[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
    for page in (tmp_path / "site").rglob("*.html"):
        assert fetched.findall(read(page)) == [], page

    known = inventory(tmp_path / "site" / "objects.inv")
    assert [name for name in public_names() if name not in known] == []
    for page in PAGES:
        for kind, text in FENCE.findall(read(page)):
            for module, names in re.findall(r"^from (residuum\S*) import (.+)$", text, re.MULTILINE):
                for name in names.split(", ") if kind == "python" else []:
                    path = f"{module}.{name}"
                    shown = path in known or f"{path}.{name}" in known  # a function that has its module's name
                    assert shown, f"{name_of(page)} imports {path}, which has no reference"


def public_names():
    """The names of the package, and those that the `__init__` of a room gives."""
    yield from (f"residuum.{name}" for name in residuum.__all__)
    for room in ROOMS:
        text = read(ROOT / "src" / "residuum" / room / "__init__.py")
        for name in re.findall(r"^ *from \S+ import \w+ as (\w+)$", text, re.MULTILINE):
            yield f"residuum.{room}.{name}"


def inventory(path):
    """The names in an inventory of Sphinx's form: four lines, then compressed ones."""
    lines = zlib.decompress(path.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {line.partition(" ")[0] for line in lines}


def test_the_readme_shows_the_two_commands_of_an_installation():
    shown = read(ROOT / "README.md").splitlines()
    assert all(line in shown for line in CONTRACT)
    assert shutil.which("residuum"), "the console script is not on the path"
