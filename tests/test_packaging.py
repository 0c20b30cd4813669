"""The distribution: its name and extras as texts say them, what lies in its files, and the wheel in an empty place."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import residuum
from residuum.extras import DISTRIBUTION, install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MOST = 10**6  # bytes of a wheel


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_version_of_the_distribution_is_read_from_the_package():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert PROJECT["name"] == DISTRIBUTION
    assert "version" in PROJECT["dynamic"]
    assert tools["setuptools"]["dynamic"]["version"] == {"attr": "residuum.__version__"}


def test_every_extra_that_a_text_or_an_error_names_is_there():
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    named = {(path, extra) for path, text in texts.items() for extra in re.findall(r"residuum-nn\[([\w,]+)\]", text)}
    called = {(path, extra) for path, text in texts.items() for extra in re.findall(r'need\(.*extra="(\w+)"', text)}
    assert len(named) > 10
    assert len(called) > 10
    for path, extras in named | called:
        assert set(extras.split(",")) <= set(EXTRAS), f"{path} names {extras}"
    # The other project's name in brackets would install its package.
    assert [path for path, text in texts.items() if re.search(r"[^\w-]residuum\[", text)] == []
    assert install("hub") == 'pip install "residuum-nn[hub]"'


def test_extras_that_hold_others_name_this_distribution():
    assert EXTRAS["log"] == ["residuum-nn[tensorboard,wandb,mlflow]"]
    inner = [re.fullmatch(r"([\w-]+)\[([\w,]+)\]", line) for lines in EXTRAS.values() for line in lines]
    for found in filter(None, inner):
        if found[1].startswith("residuum"):
            assert found[1] == DISTRIBUTION
            assert set(found[2].split(",")) <= set(EXTRAS)


def test_the_oldest_versions_that_are_tested_are_those_that_are_asked_for():
    least = dict(re.findall(r"(torch|torchvision)>=([\d.]+)", "\n".join(PROJECT["dependencies"])))
    tested = dict(re.findall(r"^(\w+)==([\d.]+)\.\*$", (ROOT / ".ci" / "oldest.txt").read_text(), re.MULTILINE))
    assert tested == least


def test_a_public_host_runs_what_is_run_anywhere_else():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    for job in jobs.values():
        assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest = next(step for step in jobs["oldest"]["steps"] if "run" in step)
    assert oldest["env"]["PIP_CONSTRAINT"].endswith("/.ci/oldest.txt")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_change_log_has_the_version():
    assert f"## [{residuum.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- the files ---------------------------------------------------------------------------------------------------------


def tracked():
    """The files of the checkout; a source distribution that was unpacked has no others than these."""
    git = shutil.which("git")
    said = (
        git
        and subprocess.run([git, "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    )
    if said:
        return {name for name in said.split("\0") if name and (ROOT / name).is_file()}
    generated = re.compile(
        r"(^|/)(__pycache__|\.\w+_cache|\.hypothesis|[^/]+\.egg-info)/|^(build|dist|runs|\.venv)/|^(PKG-INFO|setup\.cfg)$"
    )
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    return {name for name in found if not generated.search(name)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution and the wheel, of a copy of the checkout with something in it that is not for others."""
    for library in ("build", "twine", "setuptools"):
        pytest.importorskip(library)
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for stray in (
        "runs/first/state.pt",
        "secret.env",
        "src/residuum/__pycache__/a.cpython-311.pyc",
        "build/lib/old.py",
    ):
        (copy / stray).parent.mkdir(parents=True, exist_ok=True)
        (copy / stray).write_bytes(b"stray")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_the_distribution_is_whole_small_and_right(built):
    wheel, source = built
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert wheel.stat().st_size < MOST
    info = f"residuum_nn-{residuum.__version__}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        about = archive.read(f"{info}METADATA").decode()
    ours = {name.removeprefix("src/") for name in tracked() if name.startswith("src/residuum/")}
    assert {name for name in inside if not name.startswith(info)} == ours
    assert {"residuum/py.typed", "residuum/data/digits/digits.npz", "residuum/report/page.html"} <= inside
    assert {"LICENSE", "src/residuum/data/digits/README.md"} == {
        name.partition("licenses/")[2] for name in inside if "/licenses/" in name
    }
    for line in (f"Name: {DISTRIBUTION}", f"Version: {residuum.__version__}", "License-Expression: MIT AND CC-BY-4.0"):
        assert line in about.splitlines()
    with tarfile.open(source) as archive:
        top = f"residuum_nn-{residuum.__version__}/"
        packed = {member.name.removeprefix(top) for member in archive.getmembers() if member.isfile()}
    made = {name for name in packed if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert packed - made == tracked()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_place(built, tmp_path):
    wheel, _ = built
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    site = next((place / "lib").glob("python*")) / "site-packages"
    # Torch and the others are those of this Python, behind what the wheel brings; nothing is downloaded.
    others = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(place), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--no-warn-script-location", str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()

    def residuum_says(*args, codes=(0,)):
        program = place / "bin" / "residuum"
        environment = {"PATH": str(program.parent), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        result = subprocess.run(
            [str(program), *args], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode in codes, result.stdout + result.stderr
        return result.stdout

    assert residuum_says("--version").strip() == f"residuum {residuum.__version__}"
    assert "test accuracy" in residuum_says("train", "--epochs", "1", "--model.width", "0.25", "--out", "run")
    assert (empty / "run" / "weights.safetensors").is_file()
    assert str(site.relative_to(tmp_path)) in residuum_says("doctor", "--json", codes=(0, 1))
