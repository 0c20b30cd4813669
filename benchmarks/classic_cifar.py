"""The usual way to train ResNet-20 on CIFAR-10, as a plain script of PyTorch and torchvision, in fp32.

python -m benchmarks.classic_cifar CIFAR --epochs 200

CIFAR is a folder of image folders, `train/CLASS` and `test/CLASS`. Network and recipe are those of 1512.03385, section
4.2, with the 200 epochs that are usual since: SGD with momentum 0.9 and weight decay 1e-4 for all parameters, learning
rate 0.1, a tenth of it at half and at three quarters of the run, batches of 128, a border of 4 pixels and mirrors. Two
loader processes; images are decoded once. After each epoch it prints the seconds of training so far, without those of
the test, and the accuracy on the test images.
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


def training(folder: Path, epochs: int, seed: int = 0) -> Iterator[tuple[float, float]]:
    """Train; after each epoch its seconds, without the test's, and the accuracy on the test images."""
    torch.manual_seed(seed)
    usual = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))]
    varied = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, 4), *usual])
    train = DataLoader(Decoded(folder / "train", varied), 128, shuffle=True, num_workers=2)
    test = DataLoader(Decoded(folder / "test", transforms.Compose(usual)), 500, num_workers=2)
    model = ResNet20()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2, epochs * 3 // 4])
    for _ in range(epochs):
        begin = time.perf_counter()
        model.train()
        for images, labels in train:
            loss = F.cross_entropy(model(images), labels)
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
        yield seconds, right / len(test.dataset)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    spent = 0.0
    for epoch, (seconds, accuracy) in enumerate(training(asked.folder, asked.epochs, asked.seed), 1):
        spent += seconds
        print(f"epoch {epoch}: {spent:.0f} s, test {100 * accuracy:.2f} %", flush=True)


if __name__ == "__main__":
    main()
