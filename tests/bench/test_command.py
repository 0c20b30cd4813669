"""`residuum bench` as a user calls it."""

import json
from functools import partial

import pytest
from rich.console import Console

from residuum.bench import run
from residuum.bench.results import Comparison
from tests.bench.comparisons import workload
from tests.bench.stand_ins import here

QUICK = (
    "--models", "digits_resnet", "--image-size", 16, 16, "--batch-sizes", 2, "--repetitions", 2, "--rounds", 1,
    "--tasks", "infer", "--precisions", "fp32",
)  # fmt: skip


@pytest.mark.slow
def test_a_comparison_leaves_a_whole_report_and_can_be_compared_with_itself(command, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", partial(run.measure, processes=here))
    for module in ("steps", "measure"):  # a small matrix product, which a test does not wait for
        monkeypatch.setattr(f"residuum.bench.{module}.matrix_side", lambda kind: 256)
    out = tmp_path / "bench"
    result = command(
        "bench", *QUICK, "--contenders", "residuum", "plain=residuum:create", "--baseline", "plain", "--out", out
    )
    assert result.code == 0, result.err
    assert "digits_resnet inference, fp32 nchw eager, batch 2 of 16x16" in result.out
    report = Comparison.load(out / "report.json")
    assert [row.contender for row in report.workloads[0].measured()] == ["residuum", "plain"]
    assert report.command.startswith("residuum bench --models digits_resnet")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    again = command("bench", "--compare", out / "report.json", out / "report.json")
    assert again.code == 0
    assert "Nothing got slower" in again.out


@pytest.fixture
def measured(monkeypatch):
    """Let `bench` find these results one after the other, the last of which may be what ends it."""

    def give(*results):
        def measure(*arguments):
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                yield result

        monkeypatch.setattr(run, "measure", measure)

    return give


def test_a_stop_keeps_what_was_measured_with_its_pages(command, measured, tmp_path):
    measured(workload(repetitions=1), workload(repetitions=2), KeyboardInterrupt())
    result = command("bench", *QUICK, "--out", tmp_path / "b", "--contenders", "residuum", "torchvision")
    assert result.code == 130
    assert "what was measured so far is in" in result.out
    assert len(Comparison.load(tmp_path / "b" / "report.json").workloads) == 1
    assert "faster" in (tmp_path / "b" / "report.html").read_text()


def test_a_stop_before_anything_was_measured_leaves_nothing(command, measured, tmp_path):
    measured(KeyboardInterrupt())
    assert command("bench", *QUICK, "--out", tmp_path / "b", "--contenders", "torchvision").code == 130
    assert not (tmp_path / "b").exists()


def test_pages_are_drawn_once_and_json_is_written_after_each_result(command, measured, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(run, "save_pages", lambda found, out: drawn.append(Comparison.load(out / "report.json")))
    measured(*(workload(repetitions=count) for count in (1, 2, 3)))
    assert command("bench", *QUICK, "--out", tmp_path / "b", "--contenders", "torchvision").code == 0
    [found] = drawn
    assert len(found.workloads[0].row("residuum").times) == 3


def test_progress_has_a_bar_as_wide_as_the_terminal_below_what_is_done():
    console = Console(width=100, force_terminal=True, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with run._progress(console, 10) as say:
        for _ in range(5):
            say("resnet50 training, fp32 nchw eager, batch 8 of 224x224", "residuum:auto: round 2 of 2")
    text = console.export_text()
    assert max(line.count("━") for line in text.splitlines()) > 40


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    with run._progress(Console(width=300), 10) as say:
        for number in range(10):
            say("resnet50 [red]", f"step {number}")
    lines = capsys.readouterr().out.splitlines()
    assert 1 < len(lines) < 6
    assert "resnet50 [red]: step" in lines[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--contenders torchvison", "did you mean 'torchvision'"),
        ("--contenders residuum", "the baseline 'torchvision' is not one of the contenders"),
        ("--contenders brute_force", "networks from outside written NAME=MODULE:CALLABLE"),
        ("--baseline keras", "the baseline 'keras' is not one of the contenders"),
        ("--models resnet51", "did you mean 'resnet50'"),
        ("--rounds 0", "rounds is 0; it must be an integer of at least 1"),
        ("--repetitions 1", "repetitions is 1; it must be an integer of at least 2"),
        ("--threads -1", "threads is -1; it must be an integer of at least 0"),
        ("--batch-sizes 0", "batch_size is 0; it must be an integer of at least 1"),
        ("--image-size 0 3", "image_size is (0, 3)"),
        ("--models", "there is nothing to measure"),
        ("--modes graph", "leave it out"),
        ("--modes fast", "fast"),
        ("--device cuda:99", "there is no device 'cuda:99'"),
        ("--compare none.json none.json", "'none.json' cannot be read"),
        ("--compare other.json other.json", "is no report"),
        ("--out here --precisions fp32", "'here' exists already"),
        ("--out /proc/x/y --precisions fp32", "cannot be made"),
    ],
)
def test_mistakes_are_answered_in_one_sentence_and_leave_nothing(line, says, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert says in refused("bench", *line.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "other.json"]
