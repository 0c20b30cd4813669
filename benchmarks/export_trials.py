"""Exports that must stand and exports that are killed: nothing right is refused, and nothing unproved gets a name.

    python -m benchmarks.export_trials --networks 20
    python -m benchmarks.export_trials --kills 20 --formats onnx
    python -m benchmarks.export_trials --cost PHOTOS

`--networks` exports as many networks with other weights to each format and counts those that are refused. `--kills`
kills `residuum export` by SIGKILL, each time a little later, until some were killed during each part of its work; a
file that has its name must then answer as the network does. `--cost` says what an export of resnet18 at 224x224 with 16
photographs of a folder takes: seconds of processor and the most memory, those of the proof's process included.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tests.networks import relative, scramble

from residuum import Preprocessing, create, load, save
from residuum.data.named import named_files
from residuum.data.preparing import evaluation_transform, normalise
from residuum.errors import ResiduumError
from residuum.export import export
from residuum.export.write import ENDINGS
from residuum.nn.resnet import ResNet
from residuum.runtimes.exported import opened

SIZE = (32, 40)
CLASSES = tuple("abcde")
EXPORT = (sys.executable, "-m", "residuum", "export")


def network(seed: int) -> ResNet:
    """A small network with weights and statistics of its own, in evaluation."""
    torch.manual_seed(seed)
    model = create("resnet18", depths=(1, 1, 1, 1), width=0.25, num_classes=len(CLASSES)).eval()
    scramble(model)
    model.classes, model.preprocessing = CLASSES, Preprocessing(3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.875)
    return model


def refused(count: int, formats: list[str]) -> int:
    """How many of the networks' exports are refused."""
    bad, worst = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, count + 1):
            for to in formats:
                try:
                    proof = export(network(seed), Path(folder) / f"net{ENDINGS[to]}")
                    worst = max(worst, proof.logits)
                except ResiduumError as error:
                    bad += 1
                    print(f"seed {seed}, {to}: {error}")
    print(f"{count} networks in {len(formats)} formats: {bad} refused; logits differ by {worst:.1e} at most")
    return bad


def answers(path: Path, model: ResNet) -> bool:
    """Whether a file answers as the network does."""
    file = opened(path)
    images = torch.randint(0, 256, (2, *((61, 45) if file.takes == "image" else SIZE), 3), dtype=torch.uint8)
    assert model.preprocessing is not None
    pixels = images.permute(0, 3, 1, 2)
    if file.takes == "image":
        pixels = torch.stack([evaluation_transform(model.preprocessing)(image) for image in pixels])
    with torch.inference_mode():
        # Runtimes take bf16 by themselves where the processor has it.
        return relative(file(images), model(normalise(pixels, model.preprocessing))) < 3e-2


def killed(count: int, to: str) -> int:
    """How many of the killed exports left a file of the final name that is not whole."""
    with tempfile.TemporaryDirectory() as folder:
        source, place = Path(folder) / "net.safetensors", Path(folder) / "out"
        save(network(1), source)
        model = load(source)
        place.mkdir()
        command = [*EXPORT, str(source), "--to", to, "--out", str(place / f"net{ENDINGS[to]}")]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        begin = time.monotonic()
        subprocess.run(command, check=True, **quiet)
        whole = time.monotonic() - begin
        bad = left = 0
        for number in range(count):
            shutil.rmtree(place)
            place.mkdir()
            with subprocess.Popen(command, start_new_session=True, **quiet) as run:
                time.sleep(whole * (0.3 + 0.75 * number / count))
                os.killpg(run.pid, signal.SIGKILL)
            path = place / f"net{ENDINGS[to]}"
            if path.exists():
                left += 1
                bad += not answers(path, model)
        print(f"{to}: {count} kills within {whole:.1f} s of work, {left} had given out the file, {bad} of them wrong")
        return bad


def cost(photographs: Path) -> None:
    """Print what one export takes, of the whole tree of processes."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for file in named_files([str(photographs)])[:16]:
            shutil.copy(file, images)
        torch.manual_seed(0)
        model = create("resnet18").eval()
        scramble(model)
        how = Preprocessing(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875)
        save(model, Path(folder) / "net.safetensors", preprocessing=how)
        out = Path(folder) / "net.onnx"
        line = [*EXPORT, str(Path(folder) / "net.safetensors"), "--images", str(images), "--out", str(out)]
        subprocess.run(line, check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the export and of the proof that it waited for
        print(f"{used.ru_utime + used.ru_stime:.1f} s of processor, {used.ru_maxrss / 2**20:.2f} GiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=list(ENDINGS), default=["onnx", "openvino", "pt2"])
    parser.add_argument("--networks", type=int, metavar="N", help="networks to export to each format")
    parser.add_argument("--kills", type=int, metavar="N", help="exports to kill in each format")
    parser.add_argument("--cost", type=Path, metavar="PHOTOS", help="folder of photographs for one export of resnet18")
    asked = parser.parse_args()
    bad = refused(asked.networks, asked.formats) if asked.networks else 0
    if asked.kills:
        bad += sum(killed(asked.kills, to) for to in asked.formats)
    if asked.cost:
        cost(asked.cost)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
