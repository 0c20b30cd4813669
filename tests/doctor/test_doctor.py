"""`residuum doctor`: fits one screen, says the same as JSON, and finds what is wrong."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import residuum
from residuum.doctor import installation, machine, report
from residuum.errors import DeviceError

ROOT = Path(__file__).parents[2]
MIB, GIB = 2**20, 2**30


@pytest.fixture
def installed(monkeypatch):
    """Let these distributions be installed, with versions and with what they say that they need, and no others."""

    def has(versions, needs=None):
        def requires(name):
            if name not in (needs or {}):
                raise installation.PackageNotFoundError(name)
            return needs[name]

        monkeypatch.setattr(installation, "version_of", versions.get)
        monkeypatch.setattr(installation, "requires", requires)

    return has


OURS = ["torch>=2.11", "numpy>=2.0", 'scipy>=1.14; extra == "stats"', 'residuum-nn[stats]; extra == "ablate"',
        'psycopg[binary]>=3.2; extra == "ablate"', 'pytest>=8; extra == "test"']  # fmt: skip
RIGHT = {"residuum-nn": residuum.__version__, "torch": "2.11.0+cpu", "numpy": "2"}


def sound():
    """A machine with nothing wrong."""
    return {
        "threads": {"torch": 4, "allowed": 4, "container": None},
        "memory": {"free": 8 * GIB, "shared": 4 * GIB},
        "cache": {"folder": "/cache", "writable": True, "free": 8 * GIB},
        "nvidia_driver": None, "cuda": None, "devices": [],
    }  # fmt: skip


def test_the_report_fits_one_screen_and_has_what_a_reader_asks_for(command):
    result = command("doctor")
    shown = result.out.splitlines()
    assert len(shown) <= 40
    assert max(map(len, shown)) <= 80
    for word in (
        "residuum-nn",
        "torch",
        "precision",
        "threads",
        "memory",
        "allocator",
        "/dev/shm",
        "compiler",
        "cache",
    ):
        assert word in result.out
    problems = sum(line.startswith("- ") for line in shown)
    assert result.code == (1 if problems else 0)
    assert ("No problems were found." in shown) == (problems == 0)


def test_as_json_it_is_one_object_with_the_same_problems(command):
    found = json.loads(command("doctor", "--json").out)
    assert found["residuum-nn"]["version"] == residuum.__version__
    assert found["machine"]["memory"]["total"] > MIB
    assert [line for line in report.lines(found) if "free" not in line] == [
        line for line in command("doctor").out.splitlines() if "free" not in line
    ]


def test_the_longest_report_fits_too():
    found = report.examine()
    found["residuum-nn"]["folder"] = "/" + "x" * 150
    found["machine"]["environment"] = dict.fromkeys(machine._VARIABLES, "0" * 20)
    found["machine"]["devices"] = [{"name": f"cuda:{i}", "what": "NVIDIA H100 80GB HBM3, 9.0", "memory": 85 * 10**9}
                                   for i in range(8)]  # fmt: skip
    found["problems"] = ["something is wrong with it: do this"]
    shown = report.lines(found)
    assert len(shown) <= 40
    assert max(map(len, shown)) <= 80


def test_a_users_name_does_not_stand_in_the_report(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    found = report.examine()
    found["machine"]["cache"]["folder"] = "/home/somebody/.cache/residuum"
    assert "~/.cache/residuum" in "\n".join(report.lines(found))
    assert "somebody" not in "\n".join(report.lines(found))


# -- the installation --------------------------------------------------------------------------------------------------


def test_a_sound_installation_has_no_problem_and_tells_libraries_from_those_of_extras(installed):
    installed(RIGHT | {"scipy": "1.17"}, {"residuum-nn": OURS})
    assert list(installation.problems()) == []
    found = installation.describe()
    assert found["libraries"] == {"torch": "2.11.0+cpu", "numpy": "2"}
    assert found["extras"] == {"stats": {"scipy": "1.17"}, "ablate": {"psycopg": None}}


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"residuum": "0.1.0a2"}, "the distribution residuum 0.1.0a2 is installed; it is another project's"),
        ({"residuum-nn": "0.0.1"}, "residuum-nn 0.0.1 is installed, but"),
        ({"torch": "2.9.1+cu128"}, "torch 2.9.1+cu128 is older than 2.11: pip install --upgrade torch"),
        ({"numpy": None}, "numpy is not installed: pip install numpy"),
        ({"scipy": "1.9.3"}, 'scipy 1.9.3 is older than 1.14: pip install "residuum-nn[stats]"'),
        ({"torch": "2.12.0+cpu"}, "torchvision 0.26.0 is for torch 2.11.0, but 2.12.0+cpu is installed"),
    ],
)
def test_what_does_not_go_together_is_said_with_what_to_do(installed, versions, says):
    needs = {"residuum-nn": OURS, "torchvision": ["numpy", "torch==2.11.0", "pillow>=5"]}
    installed(RIGHT | {"torchvision": "0.26.0"} | versions, needs)
    found = list(installation.problems())
    assert says in found[0]
    assert len(found) == 1 or "torch" in versions


def test_a_package_that_was_written_over_by_the_other_project_is_known(installed, monkeypatch):
    installed(RIGHT, {"residuum-nn": OURS})
    monkeypatch.setattr(residuum, "__all__", ["proforma_to_smiles", "PsiModResolver"])
    monkeypatch.delattr(residuum, "__version__")
    (problem,) = installation.problems()
    assert "is not the package of residuum-nn" in problem


def test_a_checkout_that_is_not_installed_says_what_its_project_file_needs(installed):
    installed({})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(installation.requirements())
    assert [f"{r.library}>={r.least}" for r in found if r.extra is None] == project["dependencies"]
    assert {"hub", "export", "int8", "ablate", "bench"} <= {r.extra for r in found}
    assert "test" not in {r.extra for r in found}


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"threads": {"torch": 16, "allowed": 16, "container": 1.5}}, "set OMP_NUM_THREADS=2"),
        ({"threads": {"torch": 8, "allowed": 4, "container": None}}, "may use 4 processors here"),
        ({"memory": {"free": 100 * MIB, "shared": None}}, "of memory are free"),
        ({"memory": {"free": None, "shared": 64 * MIB}}, "/dev/shm holds only 67.11 MB"),
        ({"cache": {"folder": "/c", "writable": False, "free": None}}, "the cache folder /c cannot be written"),
        ({"cache": {"folder": "/c", "writable": True, "free": MIB}}, "are free where the cache folder /c is"),
        ({"nvidia_driver": "570.1"}, "this torch was built without CUDA"),
        ({"nvidia_driver": "570.1", "cuda": "12.8"}, "finds no card"),
    ],
)
def test_what_is_wrong_with_a_machine_is_said_with_what_to_do(changed, says):
    assert list(machine.problems(sound())) == []
    (problem,) = machine.problems(sound() | changed)
    assert says in problem


def test_a_machine_that_hides_what_it_has_is_described_all_the_same(monkeypatch, tmp_path):
    def hidden(*args, **kwargs):
        raise OSError("hidden")

    def unknown(device):
        raise DeviceError("not known")

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr(machine.shutil, "disk_usage", hidden)
    monkeypatch.setattr(machine, "free_memory", unknown)
    monkeypatch.setattr(machine, "compiler", lambda: None)
    monkeypatch.setattr(machine, "cpu_features", lambda names: [])
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "none"))
    found = machine.describe()
    assert (found["memory"]["shared"], found["memory"]["free"], found["compiler"]) == (None, None, None)
    assert not [problem for problem in machine.problems(found) if "threads" not in problem]
    monkeypatch.undo()
    shown = "\n".join(report.lines(report.examine() | {"machine": found}))
    assert "none: engines inductor and aoti" in shown


def test_accelerators_are_named_with_their_memory_and_those_that_are_alike_stand_together(monkeypatch):
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=85 * 10**9)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    found = machine._accelerators()
    assert [device["name"] for device in found] == ["cuda:0", "cuda:1"]
    assert report._accelerators(found) == "cuda:0, cuda:1: NVIDIA H100 80GB HBM3, 9.0, 85.00 GB"
    assert report._accelerators([{"name": "mps:0", "what": None, "memory": None}]) == "mps:0"
    assert report._accelerators([]) == "none"


def test_the_cache_is_measured_and_a_file_in_its_place_is_said(monkeypatch, tmp_path):
    (tmp_path / "cache" / "hub").mkdir(parents=True)
    (tmp_path / "cache" / "hub" / "a").write_bytes(b"x" * 1000)
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    found = machine.describe()["cache"]
    assert (found["bytes"], found["writable"]) == (1000, True)
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache" / "hub" / "a"))
    assert not machine.describe()["cache"]["writable"]
