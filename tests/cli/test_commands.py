"""The command line: what it prints, how it refuses, how fast it answers."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from residuum import PRESETS

QUICK = ("--epochs", 1, "--model.width", 0.5, "--batch-size", 256)


def test_help_lists_the_commands_without_torch():
    code = (
        "import sys; sys.argv = ['residuum', '--help']; from residuum.cli import main\ntry: main()\nexcept SystemExit: "
    )
    result = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    for name in ("train", "predict", "summary", "presets"):
        assert name in result.stdout
    assert result.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("train --model resnet51", 2), ("train --data nope", 2), ("train --model.width -1", 2), ("summary nope", 2),
        ("presets", 0), ("recipes", 0),
    ],
)  # fmt: skip
def test_lists_and_mistakes_in_names_and_fields_are_answered_without_torch(line, code):
    program = (
        f"import sys; sys.argv = ['residuum', *{line.split()!r}]\nfrom residuum.cli import main\n"
        "try: main()\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith(f"{code} False")
    assert result.stderr.startswith("error: " if code else "")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --model resnet51", "no preset 'resnet51'; did you mean 'resnet50'"),
        ("train --model.width -1", "--model.width is '-1'; it must be a number in [0.01, 64]"),
        ("train --model.groups 3", "groups=3"),
        ("train --model.widht 2", "--model.width"),
        ("train --epochs 0", "--epochs is '0'; it must be an integer of at least 1"),
        ("train --epochs many", "many"),
        ("train --log nothing", "--log is 'nothing'; it must be a list, each one of tensorboard, wandb, mlflow"),
        ("train --data nope", "neither a dataset"),
        ("train --device gpu", "'gpu' is not the name of a device"),
        ("train --device cuda:99", "there is no device 'cuda:99' here"),
        ("train --model.num-classes 3", "num_classes is 3 but 'digits' has 10"),
        ("train --model.in-channels 3", "in_channels is 3 but digits has 1"),
        ("train --recipe none.toml", "'none.toml' cannot be read"),
        ("train --resume nowhere", "'nowhere' is not a run that can be resumed"),
        ("train --out here", "'here' exists already"),
        ("predict nowhere x.png", "there is no weights file"),
        ("summary resnet51 --layers", "did you mean 'resnet50'"),
        (
            "summary resnet50 --image-size 0 3",
            "--image-size is '0 3'; it must be a list of 2 integers, each an integer of at least 1",
        ),
        ("summary resnet50 --image-size 8 8", "do not pass"),
        ("summary resnet50 --draw net.pdf", "does not end in .svg or .png"),
        ("summary resnet50 --draw no/net.png", "folder of 'no/net.png' does not exist"),
        ("presets zzz", "no preset's name fits 'zzz'; 'residuum presets' lists all"),
        ("tarin", "train"),
    ],
)
def test_mistakes_get_one_clear_sentence_and_leave_nothing(refused, tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "mine").mkdir(parents=True)
    assert says in refused(*line.split())
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.slow
def test_training_predicting_and_resuming_by_the_commands_it_prints(command, tmp_path, monkeypatch):
    import numpy as np

    from residuum.data.catalog import scan
    from residuum.data.settings import DataSettings
    from residuum.data.sources import open_dataset

    monkeypatch.chdir(tmp_path)
    result = command("train", "--epochs", 15)
    assert result.code == 0
    assert re.search(r"test accuracy \d\d\.\d\d % after 15 epochs", result.out)
    assert "runs/digits-1" in result.out
    digits = open_dataset(scan("digits"), DataSettings(), channels=1, cache=tmp_path)
    right = 0
    for i in range(0, 360, 12):
        Image.fromarray(np.kron(digits.test.images[i, :, :, 0].numpy(), np.ones((3, 3), np.uint8))).save("digit.png")
        out = command("predict", "runs/digits-1", "digit.png", "--top", 1).out
        right += out.split("\t")[1] == str(int(digits.test.labels[i]))
    assert right >= 24


def test_a_folder_of_images_trains(command, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("--data", image_folder(side=16, train=20), "--model", "digits_resnet", "--epochs", 6, "--batch-size", 10)
    result = command("train", *line)
    assert result.code == 0, result
    assert "test accuracy 100.00 %" in result.out
    told = command("predict", "runs/colours-1", "colours/test/red/0.png").out
    assert told.startswith("colours/test/red/0.png\tred\t")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", "from residuum.cli import main; main()", "train", "--epochs", "500", "--out", "run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "residuum train --resume run" in out
    assert (tmp_path / "run" / "state.pt").exists()


def test_the_summary_has_stages_and_totals(command):
    out = command("summary", "resnet50d", "--width", 0.5).out
    for word in ("stem", "layer4", "head", "total", "6,920,344", "1.09"):
        assert word in out


def test_a_preset_is_costed_at_its_own_image_size_whatever_is_changed(command):
    assert "1 x 32x32" in command("summary", "cifar_resnet20", "--in-channels", 1).out
    assert "1 x 8x8" in command("summary", "--num-classes", 5, "digits_resnet").out


@pytest.mark.parametrize("pattern", ["wide", "wide_*", "*[e]_resnet50_2", "wide_resnet??_2"])
def test_the_presets_can_be_searched_by_parts_and_globs(command, pattern):
    out = command("presets", pattern).out
    assert "wide_resnet50_2" in out
    assert "resnet18" not in out
    assert "68,883,240" in out


@pytest.mark.parametrize("width", [20, 60, 80, 160])
def test_no_figure_of_a_table_is_cut(command, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = command("summary", "senet154", "--layers", "--batch-size", 2).out.splitlines()
    assert any(re.fullmatch(r"total +50 +115,088,984 +41\.\d\d +[\d,.]+", line.strip()) for line in lines), lines
    assert any(re.fullmatch(r"layer4\.2\.conv3 +2x2048x7x7 +4,194,304( +[\d.,]+){2,3}", line) for line in lines)
    table = [line for line in lines if line.startswith(("part", "stem", "head", "total"))]
    assert max(map(len, table)) <= 60
    assert not any("…" in line for line in lines)


def test_a_summary_says_in_words_what_a_variant_changes(command):
    out = command("summary", "seresnet18", "--preact", "--norm", "group").out
    assert "pre-activation blocks, squeeze-and-excitation, group norm" in out


@pytest.mark.parametrize("line", ["summary --help", "train --help", "train --data no/such --help", "plan resnet18 -h"])
def test_help_is_shown_whatever_else_the_line_says(command, line):
    result = command(*line.split())
    assert result.code == 0
    assert "--help" in result.out


@pytest.mark.slow
def test_help_has_the_defaults_of_the_preset_that_the_line_names(command):
    assert "(default: 2 2 2 2)" in command("summary", "--help", "resnet18").out
    assert "(default: 32 32)" in command("plan", "cifar_resnet20", "--help").out


def test_the_version_is_said(command):
    from residuum import __version__

    assert command("--version").out.strip() == f"residuum {__version__}"


def test_interrupted_is_130(monkeypatch, command):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["residuum.cli.main"], "run", interrupted)
    assert command("presets").code == 130


def test_a_full_disk_is_said_in_a_sentence():
    code = "from residuum.cli import main; main()"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", code, "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr == b"error: No space left on device\n"


@pytest.mark.slow
def test_all_presets_are_listed(command):
    out = command("presets").out
    assert all(name in out for name in PRESETS)


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_drawing_has_a_bar_for_every_convolution(command, tmp_path, ending):
    path = tmp_path / f"net{ending}"
    assert command("summary", "resnet26t", "--draw", path).code == 0
    content = path.read_bytes()
    if ending == ".png":
        with Image.open(path) as image:
            assert min(image.size) > 400
    else:
        bars = content.count(b'<path d="M') - content.count(b"fill: none")
        assert bars >= 3 + 3 * 8


def test_a_reader_that_goes_away_is_no_error():
    if shutil.which("sh") is None:
        pytest.skip("needs a shell")
    code = "from residuum.cli import main; main()"
    line = f"{sys.executable} -c '{code}' train --help; echo code=$? >&2"
    result = subprocess.run(
        ["sh", "-c", f"({line}) | true"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert result.stderr == "code=0\n"
