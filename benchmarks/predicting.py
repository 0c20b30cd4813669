"""Whole processes that classify photographs: `residuum predict`, a plain torchvision script and a tuned one, in turns.

python benchmarks/predicting.py PHOTOGRAPHS [--images 1000] [--model resnet50] [--rounds 3]

PHOTOGRAPHS is a folder of image files, taken again under other names until there are enough. All use the same random
weights. Limits: the plain script takes at least 2 times as long as `residuum predict`, the tuned one 1.25 times, and
`residuum predict` at most 1.2 times start-up plus the longer of decoding alone and computing alone. Exits 1 where one
is missed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN = """
import sys
from pathlib import Path
import torch
import torchvision
from PIL import Image
from torchvision import transforms

name, weights, folder = sys.argv[1:]
model = torchvision.models.get_model(name)
model.load_state_dict(torch.load(weights))
model.eval()
prepare = transforms.Compose([
    transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
files = sorted(Path(folder).iterdir())
for start in range(0, len(files), 32):
    batch = files[start : start + 32]
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in batch])
    with torch.no_grad():
        shares, places = model(images).softmax(1).topk(3)
    for file, row, at in zip(batch, shares.tolist(), places.tolist()):
        print(file, *zip(at, row))
"""
TUNED = """
import sys
from pathlib import Path
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

name, weights, folder = sys.argv[1:]
has_bf16 = any(torch.cpu.get_capabilities().get(k) for k in ("amx_bf16", "avx512_bf16", "bf16"))
dtype = torch.bfloat16 if has_bf16 else torch.float32
prepare = v2.Compose([
    v2.PILToTensor(), v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True),
    v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])

class Photographs(Dataset):
    files = sorted(Path(folder).iterdir())
    def __len__(self):
        return len(self.files)
    def __getitem__(self, i):
        return prepare(Image.open(self.files[i]).convert("RGB")), str(self.files[i])

if __name__ == "__main__":
    model = torchvision.models.get_model(name)
    model.load_state_dict(torch.load(weights))
    model = model.eval().to(dtype=dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        for images, files in DataLoader(Photographs(), batch_size=32, num_workers=2):
            logits = model(images.to(dtype).contiguous(memory_format=torch.channels_last))
            shares, places = logits.float().softmax(1).topk(3)
            for file, row, at in zip(files, shares.tolist(), places.tolist()):
                print(file, *zip(at, row))
"""
DECODING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from residuum.data.decoding import read_image
from residuum.data.preparing import evaluation_transform
from residuum.inference.stream import READERS
import residuum, time
how = residuum.load(sys.argv[1]).preprocessing
prepare = evaluation_transform(how)
begin = time.perf_counter()
with ThreadPoolExecutor(READERS) as pool:
    for _ in pool.map(lambda file: prepare(read_image(str(file), 3)), Path(sys.argv[2]).iterdir()):
        pass
print(time.perf_counter() - begin)
"""
COMPUTING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import torch
from residuum.inference.answering import answering
from residuum.inference.stream import usual_batch
network = answering(sys.argv[1], device="auto", precision="auto")
threads, lanes = torch.get_num_threads(), network.lanes
each = usual_batch(lanes) // lanes
pixels = torch.randint(256, (each, 3, 224, 224), dtype=torch.uint8)
with ThreadPoolExecutor(lanes, initializer=lambda: torch.set_num_threads(max(1, threads // lanes))) as pool:
    list(pool.map(network, [pixels] * lanes))
    begin = time.perf_counter()
    list(pool.map(network, [pixels] * -(-int(sys.argv[2]) // each)))
    print(time.perf_counter() - begin)
"""


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def told(code: str, *words: str) -> float:
    return float(
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()

    import torch
    import torchvision

    import residuum

    with tempfile.TemporaryDirectory() as root:
        folder, one = Path(root, "photographs"), Path(root, "one")
        folder.mkdir()
        one.mkdir()
        files = sorted(path for path in asked.photographs.rglob("*") if path.is_file())
        for i in range(asked.images):
            source = files[i % len(files)].resolve()
            (folder / f"{i:05}{source.suffix}").symlink_to(source)
        (one / files[0].name).symlink_to(files[0].resolve())
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(asked.model)
        torch.save(theirs.state_dict(), f"{root}/theirs.pt")
        model = residuum.create(asked.model)
        residuum.load_weights(model, theirs.state_dict())
        how = residuum.Preprocessing(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875)
        residuum.save(model, f"{root}/ours", classes=[f"class {i}" for i in range(1000)], preprocessing=how)
        ours = [sys.executable, "-m", "residuum", "predict", f"{root}/ours"]
        commands = {
            "residuum predict": [*ours, str(folder)],
            "plain torchvision": [sys.executable, "-c", PLAIN, asked.model, f"{root}/theirs.pt", str(folder)],
            "tuned torchvision": [sys.executable, "-c", TUNED, asked.model, f"{root}/theirs.pt", str(folder)],
        }
        seconds([*ours, str(one)])  # fills the caches of the file system
        found: dict[str, list[float]] = {name: [] for name in (*commands, "start", "decoding", "computing")}
        for _ in range(asked.rounds):
            for name, command in commands.items():
                found[name].append(seconds(command))
            found["start"].append(seconds([*ours, str(one)]))
            found["decoding"].append(told(DECODING, f"{root}/ours", str(folder)))
            found["computing"].append(told(COMPUTING, f"{root}/ours", str(asked.images)))
    middle = {name: statistics.median(values) for name, values in found.items()}
    for name, value in middle.items():
        print(f"{name:20} {value:8.2f} s")
    mine = middle["residuum predict"]
    bound = middle["start"] + max(middle["decoding"], middle["computing"])
    limits = (
        ("plain / residuum", middle["plain torchvision"] / mine, ">=", 2.0),
        ("tuned / residuum", middle["tuned torchvision"] / mine, ">=", 1.25),
        ("residuum / bound", mine / bound, "<=", 1.2),
    )
    missed = 0
    for name, value, sign, limit in limits:
        kept = value >= limit if sign == ">=" else value <= limit
        missed += not kept
        print(f"{name:20} {value:8.2f}   {sign} {limit}: {'kept' if kept else 'missed'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
