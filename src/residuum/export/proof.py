"""Whether what was exported answers as the network does: on the file as written, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from residuum.data.preparing import evaluation_transform, normalise
from residuum.errors import ExportError, first_line, quoted
from residuum.export.inputs import Input
from residuum.inference.engines import TOLERANCE
from residuum.runtimes.exported import PIXELS, opened
from residuum.runtimes.onnx import OnnxSession
from residuum.runtimes.openvino import OpenVinoSession, read_model, up_to
from residuum.units import counted

HALF = 5e-3  # weights in fp16
LEVELS, SHARE = 1, 0.02  # grey levels by which scaled pixels may differ, and the share of them that may
_CHUNK = 64  # made images of a size that are compared at once
_TIMEOUT = 900.0  # seconds for the process that runs the file


@dataclass(frozen=True)
class Proof:
    """What was compared, and the largest differences that were found."""

    # number of images that were compared
    images: int
    # number of sizes among them
    sizes: int
    # largest difference of a logit, as a share of the image's largest, from the same pixels
    logits: float
    # the largest that is allowed
    allowed: float
    # the same from decoded images on, with what a grey level here and there makes of it
    whole: float
    # largest difference of scaled pixels in grey levels; None where the file shows none
    pixels: int | None = None
    # share of the pixels that differ
    pixels_share: float | None = None
    # `logits` in the precision that the runtime takes by itself on this processor, where that is not fp32
    default: float | None = None
    # that precision
    default_precision: str | None = None
    # share of the images with the same likeliest class in it
    default_top1: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Field name to value."""
        return asdict(self)

    def __str__(self) -> str:
        images = f"{counted(self.images, 'image')} of {counted(self.sizes, 'size')}"
        text = f"{images}: logits differ by {self.logits:.1e} of the largest at most"
        if self.pixels:
            text += f", with scaling {self.whole:.1e} (of the pixels {self.pixels_share:.2%} differ by a grey level)"
        if self.default is not None:
            text += (
                f"; by {self.default:.1e} in {self.default_precision}, which the runtime takes here by itself, the "
                f"likeliest class the same for {self.default_top1:.1%}"
            )
        return text


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference of outputs (N, classes) as a share of their image's largest; raises `ExportError`."""
    if got.shape != expected.shape:
        raise ExportError(f"the exported network gives {tuple(got.shape)} where it should {tuple(expected.shape)}")
    if not (expected.isfinite().all() and got.isfinite().all()):
        raise ExportError("the network's outputs are not all numbers, so an export cannot be compared with it")
    least = torch.finfo(torch.float32).tiny
    per_image = (got - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1).clamp_min(least)
    return float(per_image.amax())


# -- images ------------------------------------------------------------------------------------------------------------


def made_images(given: Input) -> list[Tensor]:
    """Images that tell wrong preprocessing from right, uint8 (N, H, W, C), batches of one size each; always the same.

    Waves from coarse to fine, of other colours in each channel, with edges and noise: what blurs, shifts, stretches,
    swaps or scales them otherwise changes many of their pixels.
    """
    height, width = given.image_size
    sizes: list[tuple[int, int, int]] = [(3, 61, 45), (1, 97, 113), (2, 2 * height + 1, 3 * width), (1, 750, 1000)]
    if given.kind != "image":
        sizes = [(3, height, width), (1, height, width)]
        if given.dynamic_size:
            sizes += [(2, height + 33, width + 1)]
    generator = torch.Generator("cpu").manual_seed(0)
    return [
        torch.stack([_made(down, across, given.channels, generator) for _ in range(count)])
        for count, down, across in sizes
    ]


def _made(height: int, width: int, channels: int, generator: torch.Generator) -> Tensor:
    down, across = torch.linspace(0, 1, height)[:, None, None], torch.linspace(0, 1, width)[None, :, None]
    draws = torch.rand(6, channels, generator=generator)
    coarse = (3 * down * draws[0] + 4 * across * draws[1] + draws[2]).sin()
    fine = (height * down * draws[3] * 0.7).sin() * (width * across * draws[4] * 0.7).sin()
    edges = ((6 * down + 5 * across + draws[5]) % 1 > 0.5).float()
    noise = torch.rand(height, width, channels, generator=generator)
    values = 0.5 + 0.25 * coarse + 0.1 * fine + 0.15 * (edges - 0.5) + 0.2 * (noise - 0.5)
    return (255 * values).round().clamp(0, 255).to(torch.uint8)


def batched(images: Sequence[Tensor]) -> list[Tensor]:
    """Decoded images, uint8 (H, W, C), as batches of one size each, (N, H, W, C)."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for image in images:
        groups.setdefault(image.shape, []).append(image)
    return [part for group in groups.values() for part in torch.split(torch.stack(group), _CHUNK)]


# -- the proof ---------------------------------------------------------------------------------------------------------


def prove_file(
    path: Path, network: nn.Module, given: Input, batches: Sequence[Tensor], allowed: float, note: Mapping[str, Any]
) -> Proof:
    """Compare a written file with the network, fp32 on the CPU, on batches of decoded images, uint8 (N, H, W, C).

    The file is opened and run by its runtime in a process of its own, in batches as given and one by one; what it says
    of itself is compared with `note`. Raises `ExportError` that names what differs and by how much.
    """
    expected_pixels, expected = zip(*(_expected(network, given, images) for images in batches), strict=True)
    with tempfile.TemporaryDirectory(prefix="residuum-proof-") as folder:
        asked, answered = Path(folder) / "asked.npz", Path(folder) / "answered.npz"
        cases = {f"images{i}": _as_given(images, given) for i, images in enumerate(batches)}
        np.savez(asked, allow_pickle=False, **cases)
        answers = _answers(path, asked, answered)
        _check_note(json.loads(str(answers["note"])), note)
        logits = [torch.from_numpy(answers[f"logits{i}"]) for i in range(len(batches))]
        pixels, share = _pixels(answers, expected_pixels)
        whole = worst = max(difference(got, wanted) for got, wanted in zip(logits, expected, strict=True))
        if pixels:  # the file's network is asked for what it makes of the file's pixels
            seen = [torch.from_numpy(answers[f"pixels{i}"]) for i in range(len(batches))]
            expected = tuple(_logits_of(network, given, images) for images in seen)
            worst = max(difference(got, wanted) for got, wanted in zip(logits, expected, strict=True))
        default: dict[str, Any] = {}
        if "precision" in answers:
            usual = [torch.from_numpy(answers[f"default{i}"]) for i in range(len(batches))]
            same = [a.argmax(1) == b.argmax(1) for a, b in zip(usual, expected, strict=True)]
            default = {
                "default": max(difference(got, wanted) for got, wanted in zip(usual, expected, strict=True)),
                "default_precision": str(answers["precision"]),
                "default_top1": float(torch.cat(same).double().mean()),
            }
    if pixels is not None and share is not None and (pixels > LEVELS or share > SHARE):
        raise ExportError(
            f"the file's preprocessing differs from the network's: by {pixels} grey levels at most, in {share:.1%} of "
            f"the pixels, where {LEVELS} in {SHARE:.0%} is allowed; nothing is left"
        )
    if worst > allowed:
        raise ExportError(
            f"the file's logits differ from the network's by {worst:.2g} of the largest, more than {allowed:g}; "
            "nothing is left"
        )
    if default and default["default"] > TOLERANCE["bf16"]:
        raise ExportError(
            f"in {default['default_precision']}, which the runtime takes here by itself, the file's logits differ by "
            f"{default['default']:.2g} of the largest, more than {TOLERANCE['bf16']:g}, and nothing is left; with "
            "precision fp32 the file is proved and run in fp32"
        )
    count = sum(len(images) for images in batches)
    return Proof(count, len({images.shape[1:3] for images in batches}), worst, allowed, whole, pixels, share, **default)


def _expected(network: nn.Module, given: Input, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees of decoded images, uint8 (N, C, H, W), and its logits: as evaluation has them."""
    pixels = images.permute(0, 3, 1, 2)
    if given.kind == "image":
        assert given.preprocessing is not None
        pixels = torch.stack([evaluation_transform(given.preprocessing)(image) for image in pixels])
    return pixels, _logits_of(network, given, pixels)


def _logits_of(network: nn.Module, given: Input, pixels: Tensor) -> Tensor:
    """The network's logits of scaled images, uint8 (N, C, H, W)."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return network(_normal(pixels, given)).float()  # type: ignore[no-any-return]


def _normal(pixels: Tensor, given: Input) -> Tensor:
    return pixels.float() / 255 if given.preprocessing is None else normalise(pixels, given.preprocessing)


def _check_note(read: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(written))  # as JSON has it: lists for tuples
    same = {name for name in wanted if name in read and read[name] == wanted[name]}
    wrong = sorted({*read, *wanted} - same)
    if wrong:
        raise ExportError(
            f"what the file says of itself differs from what was to be written, in {len(wrong)} of {len(wanted)} "
            f"entries: {', '.join(map(quoted, wrong))}; nothing is left"
        )


def _as_given(images: Tensor, given: Input) -> "np.ndarray[Any, Any]":
    if given.order == "bgr":
        images = images.flip(3)
    if given.kind != "normalized":
        return images.contiguous().numpy()
    return _normal(images.permute(0, 3, 1, 2), given).contiguous().numpy()


def _pixels(answers: dict[str, Any], expected: Sequence[Tensor]) -> tuple[int | None, float | None]:
    """The largest difference of scaled pixels in grey levels, and the share of all pixels that differs."""
    if "pixels0" not in answers:
        return None, None
    worst, other, every = 0, 0, 0
    for number, wanted in enumerate(expected):
        got = torch.from_numpy(answers[f"pixels{number}"])
        if got.shape != wanted.shape:
            raise ExportError(f"the file scales images to {tuple(got.shape)} where it should to {tuple(wanted.shape)}")
        apart = (got.int() - wanted.int()).abs()
        worst, other, every = max(worst, int(apart.max())), other + int((apart > 0).sum()), every + apart.numel()
    return worst, other / every


def _answers(path: Path, asked: Path, answered: Path) -> dict[str, Any]:
    """What a new process finds when it runs the file; raises `ExportError`."""
    command = [sys.executable, "-P", "-m", "residuum.export.proof", str(path), str(asked), str(answered)]
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"the file did not answer within {_TIMEOUT:g} s; it is not given out") from None
    if done.returncode or not answered.is_file():
        last = (done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ExportError(f"the file cannot be run: {quoted(last, 300)}; nothing is left")
    with np.load(answered, allow_pickle=False) as found:
        return dict(found)


# -- in the process that runs the file ---------------------------------------------------------------------------------


def _run(path: Path, asked: Path, answered: Path) -> None:
    exported = opened(path)
    with np.load(asked, allow_pickle=False) as found:
        batches = [torch.from_numpy(found[f"images{i}"]) for i in range(len(found.files))]
    answers: dict[str, Any] = {"note": np.array(json.dumps(dict(exported.note)))}
    run = exported.run
    if isinstance(run, OpenVinoSession) and run.precision != "fp32":  # it takes less by itself
        answers["precision"] = np.array(run.precision)
        answers |= {f"default{i}": _logits(run, images) for i, images in enumerate(batches)}
        run = OpenVinoSession(path, precision="fp32")
    for number, images in enumerate(batches):
        answers[f"logits{number}"] = _logits(run, images)
        one = torch.cat([run(images[i : i + 1]).float() for i in range(min(len(images), 3))])
        if difference(one, torch.from_numpy(answers[f"logits{number}"][: len(one)])) > TOLERANCE["fp32"]:
            raise ExportError("the file gives other logits for an image alone than for the same image among others")
    show = _shows_pixels(path) if exported.takes == "image" else None
    if show is not None:
        answers |= {f"pixels{i}": show(images).numpy() for i, images in enumerate(batches)}
    np.savez(answered, allow_pickle=False, **answers)


def _logits(run: Callable[[Tensor], Tensor], images: Tensor) -> "np.ndarray[Any, Any]":
    return run(images).float().numpy()


def _shows_pixels(path: Path) -> Callable[[Tensor], Tensor] | None:
    """From images to what the file's scaling makes of them; None where the file shows nothing between."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.UINT8, None))
        return OnnxSession(model.SerializeToString())
    if path.suffix == ".xml":
        return OpenVinoSession(up_to(read_model(path), PIXELS))
    return None


def main() -> None:
    """Run the file that is named, on the images of the next, and write its answers to the last."""
    try:
        _run(*map(Path, sys.argv[1:]))
    except Exception as error:  # told in one line to the process that waits
        print(json.dumps(first_line(error)) if not isinstance(error, ExportError) else str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
