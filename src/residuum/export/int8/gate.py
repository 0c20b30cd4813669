"""A network in 8-bit integers that is only given out where its accuracy stands."""

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from residuum.data.preparing import evaluation_transform, normalise
from residuum.data.sources import Split
from residuum.devices import cpuinfo, now, processor
from residuum.errors import ConfigError, ExportError, quoted
from residuum.evaluation.counts import pair
from residuum.evaluation.predictions import Predictions, joined, look
from residuum.export.int8.calibration import Calibration, digests, refuse_overlap
from residuum.export.int8.capture import captured
from residuum.export.int8.onnx import OnnxNetwork
from residuum.export.int8.openvino import OpenVinoNetwork
from residuum.export.int8.report import BlockError, Int8Report, Round, Speed, worst_blocks
from residuum.inference.answering import Answering
from residuum.nn.resnet import ResNet
from residuum.preprocessing import Preprocessing
from residuum.report.tables import Table

Runtime = Literal["onnx", "openvino"]
Logits = Callable[[Tensor], Tensor]  # of normalised images
MAX_DROP = 1.0  # points of top-1 accuracy
ROUNDS = 5  # attempts of the gate
GATE = 10_000  # test images that are looked at
LOOKED = 32  # test images of which blocks' outputs are compared
BATCH = 8
SECONDS = 1.0  # for which the speed at each batch is measured
FALL = 3.0  # dB between images for calibration and test images that are not as alike as they should be
COLOURS = 6.0  # standard errors between the mean colours of images for calibration and test images
SAME = 1e-4  # of a block's largest output: what the float network in another runtime may differ by
# How ranges are found where nothing is asked for: the winner of benchmarks/quantisation.py.
DEFAULTS = {"onnx": "minmax", "openvino": "histogram"}
# Instructions that add products of 8-bit integers up in 32 bits. Without them sums saturate at 16 bits.
_DOT_PRODUCTS = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "amx_int8": "AMX"}


class Session(Protocol):
    """A model that is run: images -> logits."""

    precision: str

    def __call__(self, *tensors: Tensor) -> Tensor: ...


class Network(Protocol):
    """A float network as one runtime has it, and what is done with it and with what is made of it."""

    runtime: str
    names: tuple[str, ...]
    model: Any

    def quantized(
        self, images: Sequence[Tensor], *, method: str, keep: Sequence[str] = (), reduced: bool = False,
        per_channel: bool = True,
    ) -> Any: ...  # fmt: skip
    def of_one_scale(self, model: Any) -> list[str]: ...
    def session(self, model: Any, threads: int | None = None) -> Session: ...
    def outputs(self, model: Any, *, apart: bool) -> Callable[..., list[Tensor]]: ...
    def write(self, model: Any, path: Path) -> None: ...


NETWORKS: dict[str, Callable[[ExportedProgram, Sequence[str]], Network]] = {
    "onnx": OnnxNetwork,
    "openvino": OpenVinoNetwork,
}
METHODS = {"onnx": OnnxNetwork.methods, "openvino": OpenVinoNetwork.methods}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A network in 8-bit integers, normalised images (N, C, H, W) -> logits, and what it cost.

    `model` is an `onnx.ModelProto` or an `openvino.Model`.
    """

    # an `onnx.ModelProto` or an `openvino.Model`
    model: Any
    # what it cost: accuracy, size, speed, and each block's signal to noise
    report: Int8Report


class GateError(ExportError):
    """A network that loses more accuracy in integers than is allowed; `table` says which blocks lose most."""

    def __init__(self, message: str, table: Table) -> None:
        super().__init__(message)
        self.table = table


def dot_products() -> tuple[str, ...]:
    """The processor's instructions for products of 8-bit integers; none where it has none or is not known."""
    there = {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    there |= set(cpuinfo("flags").split())
    return tuple(shown for name, shown in _DOT_PRODUCTS.items() if name in there)


def quantize(
    model: ResNet,
    images: Calibration,
    test: Split,
    *,
    runtime: Runtime,
    max_drop: float = MAX_DROP,
    method: str | None = None,
    reduced: bool | None = None,
    per_channel: bool = True,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Quantized:
    """Quantise a network after training, and keep blocks in float until its top-1 accuracy stands.

    `images` are what `calibration` chose among training images, `test` the labelled images by which the network is
    judged: its labels count the network's classes. At most `max_drop` points of top-1 accuracy may be lost on the same
    images. Where more are, the blocks that lose most by themselves are left in float, 1, then 3, 7 and 15 of them and
    never more than half; where that is not enough, `GateError`. `method` is one of the runtime's, by which the ranges
    of activations are found. `reduced` takes 7 bits for weights, by default where this processor has no instructions
    that add without saturation.

    Raises `ConfigError` for what cannot be, `DataError` where a test image is one of calibration, `ExportError`,
    `MissingExtraError`. The network is taken as in evaluation and left as it was.
    """
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise ConfigError("the network does not say how images are preprocessed; set its preprocessing")
    if runtime not in NETWORKS:
        raise ConfigError(f"runtime is {quoted(runtime)}; int8 is for {' or '.join(NETWORKS)}")
    if not (math.isfinite(max_drop) and 0 <= max_drop <= 100):
        raise ConfigError(f"max_drop is {quoted(max_drop)}; it must be points of accuracy from 0 to 100")
    instructions = dot_products()
    reduced = not instructions if reduced is None else reduced
    method = DEFAULTS[runtime] if method is None else method
    if method not in METHODS[runtime]:
        raise ConfigError(f"method is {quoted(method)}; for {runtime} it is one of {', '.join(METHODS[runtime])}")
    program, tapped = captured(model, preprocessing.image_size)
    network = NETWORKS[runtime](program, tapped.names)

    test = _at_most(test, GATE)
    classes = model.classes or tuple(map(str, range(model.config.num_classes)))
    plain = network.session(network.model, threads)
    say(f"the float network on {len(test):,} test images")
    seen: list[str] = []
    colours: list[Tensor] = []
    before = _predictions(_noted(plain, seen, colours, preprocessing), test, preprocessing, classes)
    refuse_overlap(images, seen)

    looked = _some(test, preprocessing)
    expected = network.outputs(network.model, apart=False)(looked)
    with torch.no_grad():
        logits, *rest = tapped(looked)
    _compare(network.names, expected, [*rest, logits])
    batches = images.batches()
    lost: dict[str, float] = {}  # in dB, by blocks that are left in float
    rounds: list[Round] = []
    while True:
        kept = tuple(lost)
        say(f"int8, attempt {len(rounds) + 1}" + (f", with {', '.join(kept)} in float" if kept else ""))
        made = network.quantized(batches, method=method, keep=kept, reduced=reduced, per_channel=per_channel)
        if per_channel and (coarse := network.of_one_scale(made)):
            raise ExportError(
                f"the weights of {len(coarse)} convolutions, such as {quoted(coarse[0])}, have one scale for all "
                "channels, which loses those that are small; nothing is written"
            )
        blocks = _errors(network, made, looked, expected, lost)
        session = network.session(made, threads)
        after = _predictions(session, test, preprocessing, classes)
        paired = pair(before.right, after.right)
        rounds.append(Round(kept, -100 * paired.difference, paired.interval))
        if -100 * paired.difference <= max_drop:
            break
        more = _worst(blocks, len(rounds))
        lost |= {block.name: block.own for block in more}
        if not more or len(rounds) == ROUNDS:
            tried = f"with {len(rounds[-1].kept)} blocks in float" if rounds[-1].kept else "with all blocks in int8"
            raise GateError(
                f"int8 loses {rounds[-1].drop:.2f} points of top-1 accuracy {tried}, more than {max_drop:g}; nothing "
                f"is written; worst is {worst_blocks(blocks).rows[0][0]}; allow more by max_drop, or export in float",
                worst_blocks(blocks),
            )
    notes = [note for note in (images.note, _processor_note(instructions, reduced)) if note]
    fall = _signal(plain, session, images.images[:LOOKED]) - _signal(plain, session, looked)
    logits_ratio = _signal(plain, session, looked)
    if fall > FALL:
        notes.append(
            f"the logits' signal to noise is {fall:.1f} dB lower on test images than on those for calibration, which "
            "are of another kind or were preprocessed otherwise (mean, deviation, order of channels)"
        )
    if swapped := _unlike(images.images.mean((2, 3)), torch.cat(colours)):
        notes.append(swapped)
    low = paired.interval[0]
    if -100 * low > max_drop:
        notes.append(
            f"{len(test):,} test images are too few to be sure: as much as {-100 * low:.2f} points may be lost"
        )
    say("the speed of both")
    report = Int8Report(
        runtime=runtime, method=method, float_precision=plain.precision, calibration_images=len(images),
        calibration_asked=images.asked, test_images=len(before.labels), max_drop=max_drop, reduced=reduced,
        processor=processor(), instructions=instructions, blocks=blocks, logits=logits_ratio, paired=paired,
        agreement=_agreement(before, after), float_bytes=size_of(network, network.model),
        int8_bytes=size_of(network, made),
        speed=tuple(speed(plain, session, looked, batch) for batch in (1, BATCH)), rounds=tuple(rounds),
        notes=tuple(notes),
    )  # fmt: skip
    return Quantized(made, report)


def _at_most(test: Split, count: int) -> Split:
    """Some of the images where there are very many, always the same ones."""
    if len(test) <= count:
        return test
    chosen = torch.zeros(len(test), dtype=torch.bool)
    chosen[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]] = True
    return test.take(chosen)


def _predictions(logits: Logits, test: Split, preprocessing: Preprocessing, classes: tuple[str, ...]) -> Predictions:
    shard = look(_answering(logits, preprocessing, classes), test, batch_size=32)
    return joined([shard], test, classes, source="the network in int8", data="the test images", about="")


def _answering(logits: Logits, preprocessing: Preprocessing, classes: tuple[str, ...] = ()) -> Answering:
    """What takes normalised images, as evaluation looks at it."""

    def answer(pixels: Tensor) -> Tensor:
        return logits(normalise(pixels, preprocessing))

    prepare = evaluation_transform(preprocessing)
    return Answering("the network", classes, preprocessing, False, len(classes), "int8", 1, prepare, answer)


def _noted(logits: Logits, seen: list[str], colours: list[Tensor], preprocessing: Preprocessing) -> Logits:
    """The network, with the digest of each image that it is given and the mean of its channels written down."""

    def run(images: Tensor) -> Tensor:
        seen.extend(digests(images, preprocessing))
        colours.append(images.mean((2, 3)))
        return logits(images)

    return run


def _some(test: Split, preprocessing: Preprocessing) -> Tensor:
    """Normalised test images (N, C, H, W), spread over the split."""
    chosen = torch.zeros(len(test), dtype=torch.bool)
    chosen[torch.linspace(0, len(test) - 1, min(LOOKED, len(test))).long()] = True
    found: list[Tensor] = []

    def keep(images: Tensor) -> Tensor:
        found.append(images.contiguous())
        return images.flatten(1)[:, :1]

    look(_answering(keep, preprocessing), test.take(chosen), batch_size=LOOKED)
    return torch.cat(found)


def _compare(names: Sequence[str], got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise `ExportError` where a block of the float network in another runtime does not answer as torch's does."""
    for name, one, other in zip(names, got, expected, strict=True):
        off = float((one - other).abs().amax() / other.abs().amax().clamp_min(1e-30))
        if not off <= SAME:  # NaN too
            raise ExportError(f"{name} of the converted network differs from the network's by {off:.2g} of the largest")


def ratio(expected: Tensor, got: Tensor) -> float:
    """Signal to noise in dB: how large the expected values are against their difference from those that came."""
    noise = (expected.double() - got.double()).square().sum().item()
    signal = expected.double().square().sum().item()
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30 * max(signal, 1.0)))


def _errors(
    network: Network, made: Any, images: Tensor, expected: Sequence[Tensor], lost: Mapping[str, float]
) -> tuple[BlockError, ...]:
    whole = network.outputs(made, apart=False)(images)
    own = network.outputs(made, apart=True)(images, *expected[:-1])
    return tuple(
        BlockError(name, lost.get(name, ratio(true, alone)), ratio(true, all_before), name in lost)
        for name, true, alone, all_before in zip(network.names, expected, own, whole, strict=True)
    )


def _worst(blocks: Sequence[BlockError], attempts: int) -> list[BlockError]:
    """The blocks to leave in float too after so many attempts; none where over half of all would be in float."""
    worst = sorted((block for block in blocks if not block.kept), key=lambda block: block.own)[: 2 ** (attempts - 1)]
    kept = sum(block.kept for block in blocks)
    return worst if 2 * (kept + len(worst)) <= len(blocks) else []


def _signal(plain: Logits, session: Logits, images: Tensor) -> float:
    return ratio(plain(images), session(images))


def _agreement(first: Predictions, second: Predictions) -> float:
    """The share of images of which both networks say the same class; of several classes, all the same."""
    if first.several:
        same = ((first.probabilities >= 0.5) == (second.probabilities >= 0.5)).all(1)
    else:
        same = first.probabilities.argmax(1) == second.probabilities.argmax(1)
    return float(np.mean(same))


def _unlike(first: Tensor, second: Tensor) -> str:
    """What is to be said where images for calibration have other colours than test images; nothing where they agree.

    Both are the means of normalised channels, (N, C). What is compared is how channels differ from one another, which
    an image's brightness does not change; from `COLOURS` standard errors on it is said.
    """
    if first.shape[1] < 2:
        return ""

    def apart(given: Tensor) -> float:
        sides = [values - values.mean(1, keepdim=True) for values in (given, second)]
        error = sum(side.var(0) / len(side) for side in sides)
        off = (sides[0].mean(0) - sides[1].mean(0)).abs() / torch.as_tensor(error).sqrt().clamp_min(1e-6)
        return float(off.max())

    if apart(first) < COLOURS:
        return ""
    reason = "their channels seem to be in reverse order" if apart(first.flip(1)) < COLOURS else (
        "they are of another kind, or not all classes are among them"
    )  # fmt: skip
    return f"the images for calibration have other colours than the test images: {reason}"


def _processor_note(instructions: Sequence[str], reduced: bool) -> str:
    if instructions:
        return f"this processor multiplies 8-bit integers by {' and '.join(instructions)}"
    used = "reduced range used" if reduced else "and the full range is used"
    return f"no VNNI on this processor: int8 may be slower and may saturate; {used}"


def size_of(network: Network, model: Any) -> int:
    """Bytes of a network as it is written."""
    with tempfile.TemporaryDirectory() as folder:
        network.write(model, Path(folder, "network.xml" if network.runtime == "openvino" else "network.onnx"))
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def speed(plain: Logits, session: Logits, images: Tensor, batch: int) -> Speed:
    """Images/s of both, the median of passes that are run in turns."""
    given = images[torch.arange(batch) % len(images)].contiguous()
    cpu = torch.device("cpu")
    times: tuple[list[float], list[float]] = ([], [])
    plain(given), session(given)
    begin = now(cpu)
    while len(times[0]) < 3 or (now(cpu) - begin < SECONDS and len(times[0]) < 200):
        for run, spent in zip((plain, session), times, strict=True):
            start = now(cpu)
            run(given)
            spent.append(now(cpu) - start)
    first, second = (batch / statistics.median(spent) for spent in times)
    return Speed(batch, first, second)
