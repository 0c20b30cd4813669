"""The usual way to train ResNet-20 on CIFAR-10, as a plain script of PyTorch and torchvision, in fp32.

python -m benchmarks.classic_cifar CIFAR --epochs 200
python -m benchmarks.classic_cifar CIFAR --compile --keep classic.pt  # its end alone, over several sittings

CIFAR is a folder of image folders, `train/CLASS` and `test/CLASS`. Network and recipe are those of 1512.03385, section
4.2, with the 200 epochs that are usual since: SGD with momentum 0.9 and weight decay 1e-4 for all parameters, learning
rate 0.1, a tenth of it at half and at three quarters of the run, batches of 128, a border of 4 pixels and mirrors. Two
loader processes; images are decoded once. After each epoch it prints the seconds of training so far, without those of
the test, and the accuracy on the test images. `--compile` runs the same network channels-last and compiled, which is
for where its accuracy is asked for and not its speed. `--keep` saves the state after each epoch and begins from it.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder


class Basic(nn.Module):
    """3x3, 3x3 and a shortcut; zeros for new channels."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, out - inp

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(h + x)


class ResNet20(nn.Module):
    """Nine blocks of 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        plan = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*(Basic(*block) for block in plan))
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Decoded(Dataset[Any]):
    """The images of a folder, decoded once."""

    def __init__(self, folder: Path, transform: transforms.Compose) -> None:
        found = ImageFolder(str(folder))
        self.images: list[Image.Image] = [image.copy() for image, _ in found]
        self.labels, self.transform = found.targets, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), self.labels[index]


def training(
    folder: Path, epochs: int, seed: int = 0, compiled: bool = False, keep: Path | None = None
) -> Iterator[tuple[float, float]]:
    """Train; after each epoch its seconds, without the test's, and the accuracy on the test images.

    With `keep` the epochs that are in it are given first, from it, and the run goes on after them.
    """
    torch.manual_seed(seed)
    usual = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))]
    varied = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, 4), *usual])
    train = DataLoader(Decoded(folder / "train", varied), 128, shuffle=True, num_workers=2)
    test = DataLoader(Decoded(folder / "test", transforms.Compose(usual)), 500, num_workers=2)
    model = ResNet20()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, epochs * 3 // 4])
    run = model
    if compiled:
        run = torch.compile(model.to(memory_format=torch.channels_last))  # type: ignore[assignment]
    asked, past = {"epochs": epochs, "seed": seed, "images": len(train.dataset)}, []  # type: ignore[arg-type]
    if keep and keep.exists():
        state = torch.load(keep, weights_only=True)
        if state["asked"] != asked:
            raise SystemExit(f"{keep} is of a run with {state['asked']}, not {asked}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])  # the order of images, and the seeds of the loader's processes
        past = [(seconds, accuracy) for seconds, accuracy in state["past"]]
        yield from past
    for _ in range(len(past), epochs):
        begin = time.perf_counter()
        model.train()
        for images, labels in train:
            loss = F.cross_entropy(run(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        seconds = time.perf_counter() - begin
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in test:
                right += int((model(images).argmax(1) == labels).sum())
        past.append((seconds, right / len(test.dataset)))  # type: ignore[arg-type]
        if keep:
            state = {"asked": asked, "random": torch.get_rng_state(), "past": past, "model": model.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, keep.with_suffix(".part"))
            keep.with_suffix(".part").replace(keep)
        yield past[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="channels-last and compiled: faster, the same network")
    parser.add_argument("--keep", type=Path, help="file of the state: saved after each epoch, begun from if it exists")
    asked = parser.parse_args()
    spent = 0.0
    run = training(asked.folder, asked.epochs, asked.seed, asked.compile, asked.keep)
    for epoch, (seconds, accuracy) in enumerate(run, 1):
        spent += seconds
        print(f"epoch {epoch}: {spent:.0f} s, test {100 * accuracy:.2f} %", flush=True)


if __name__ == "__main__":
    main()
