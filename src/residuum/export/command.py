"""What `residuum export` does: a source opened, images for the proof found, the file written and proved."""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from residuum.data.catalog import scan
from residuum.data.decoding import read_image
from residuum.data.named import named_files
from residuum.data.preparing import evaluation_transform
from residuum.data.sources import Dataset, Split, open_dataset
from residuum.errors import ConfigError, DataError, ExportError, ResiduumError, quoted
from residuum.evaluation.command import settings_of_run
from residuum.export.inputs import Kind, Order
from residuum.export.int8.calibration import COUNT, calibration
from residuum.export.int8.gate import MAX_DROP, Quantized, Runtime, quantize
from residuum.export.int8.report import Int8Report
from residuum.export.proof import Proof
from residuum.export.servers import Server, check_server, server_folder
from residuum.export.write import ENDINGS, Format, Precision, export, format_of, usual_input
from residuum.factory import create
from residuum.files import cache_folder, replaceable
from residuum.inference.answering import loaded
from residuum.nn.resnet import ResNet
from residuum.presets import PRESETS, usual_image_size
from residuum.units import counted
from residuum.weights.converting import unsaid

IMAGES = 64  # of a folder or a split that are compared


@dataclass(frozen=True)
class Request:
    """What is asked for; None is what the source says."""

    source: str
    to: Format
    out: Path | None
    input: Kind | None
    image_size: tuple[int, int] | None
    dynamic_size: bool
    order: Order
    opset: int | None
    half: bool
    precision: Precision
    images: Path | None
    server: Server | None = None
    int8: bool = False
    calibration: Path | None = None
    calibration_images: int = COUNT
    max_drop: float = MAX_DROP


@dataclass(frozen=True)
class Written:
    """What was written: the file, its proof, and sentences about how it came to be."""

    path: Path
    proof: Proof
    notes: tuple[str, ...]
    models: Path | None = None  # folder that a server loads
    int8: Int8Report | None = None


def write(request: Request, say: Callable[[str], None] = lambda text: None) -> Written:
    """Export as asked, and `say` what is being done; raises `ResiduumError`."""
    if request.int8 and request.to not in ("onnx", "openvino"):
        raise ConfigError("int8 is for onnx and openvino; export to one of them")
    if request.calibration is not None and not request.int8:
        raise ConfigError("--calibration is for --int8; leave it out")
    if request.server is not None:
        return _for_server(request, request.server, say)
    model, notes = _network(request.source)
    path = request.out or Path(f"{_name(request.source)}{ENDINGS[request.to]}")
    if format_of(path) != request.to:
        raise ConfigError(f"{quoted(str(path))} must end in {ENDINGS[request.to]} to export to {request.to}")
    replaceable(path, ExportError)  # before minutes of work
    how = model.preprocessing
    if request.int8 and how is not None and request.image_size not in (None, how.image_size):
        raise ConfigError(
            f"int8 is measured on images of {how.image_size[0]}x{how.image_size[1]}, as this network looks at them; "
            "leave out --image-size"
        )
    quantized = _quantized(request, model, say) if request.int8 else None
    images, of = _images(request, model)
    notes = (
        *notes,
        f"compared on {counted(len(images), 'image')} of {of}, and on made-up ones" if images else f"compared on {of}",
    )
    kind = request.input or usual_input(model, request.to)
    size = request.image_size or (usual_image_size(request.source) if _is_preset(request.source) else None)
    if kind != "image" and images and model.preprocessing is not None:
        scaled = evaluation_transform(replace(model.preprocessing, image_size=size or model.preprocessing.image_size))
        images = [scaled(image.permute(2, 0, 1)).permute(1, 2, 0) for image in images]
    proof = export(
        model, path, input=request.input, image_size=size, dynamic_size=request.dynamic_size,
        order=request.order, opset=request.opset, half=request.half, precision=request.precision,
        images=images, quantized=quantized,
    )  # fmt: skip
    if request.precision == "fp32":
        notes = (*notes, "to programs that open the file give OpenVINO's INFERENCE_PRECISION_HINT as f32")
    return Written(path, proof, notes, int8=None if quantized is None else quantized.report)


def _for_server(request: Request, server: Server, say: Callable[[str], None]) -> Written:
    """A folder of models, named `out`, with the file in it and the proof beside the file."""
    folder = request.out or Path(f"{_name(request.source)}-{server}")
    if folder.exists():
        raise ExportError(f"{quoted(str(folder))} exists already; choose another --out")
    ending = ENDINGS[request.to]
    check_server(server, Path(f"{_name(request.source)}{ending}"), request.precision)
    with tempfile.TemporaryDirectory(prefix="residuum-export-") as place:
        name = folder.name.removesuffix(f"-{server}")
        written = write(replace(request, server=None, out=Path(place) / f"{name}{ending}"), say)
        models = server_folder(written.path, folder, server)
        statement = written.path.with_name(f"{written.path.name}.proof.json")
        shutil.copyfile(statement, models / "proof.json")
    return replace(written, path=models / "1" / f"model{ending}", models=folder)


def _name(source: str) -> str:
    """What to call a file that is made of a source: that of a run or reference, of a file without its ending."""
    path = Path(source)
    if path.is_dir():
        return path.resolve().name or "network"  # "." has no name of its own, and a disk's root none at all
    return path.stem if path.is_file() else Path(source.replace(":", "-").rstrip("/")).name


def _network(source: str) -> tuple[ResNet, tuple[str, ...]]:
    """The network of a source; that of a preset has random weights."""
    if _is_preset(source):
        with torch.device("cpu"):
            model = create(source).eval()
        return model, ("the preset has random weights; name a run or weights for trained ones",)
    return loaded(source), ()


def _is_preset(source: str) -> bool:
    return source in PRESETS and not Path(source).exists()


def _images(request: Request, model: ResNet) -> tuple[list[Tensor], str]:
    """Decoded images, uint8 (H, W, C), and where they are from."""
    channels = model.config.in_channels
    if channels not in (1, 3) or model.preprocessing is None:
        if request.images is not None:
            raise unsaid(request.source, "preprocessing")
        return [], "made-up images"
    if request.images is not None:
        return _of_folder(request.images, channels), quoted(str(request.images))
    with contextlib.suppress(ResiduumError, ValueError, KeyError, TypeError, OSError):  # no run, or its data is gone
        dataset, path = _data_of_run(request.source, channels)
        split, name = _unseen(dataset)
        return _of_split(split, channels), f"the {name} split of {quoted(path)}"
    return [], "made-up images"


def _data_of_run(source: str, channels: int) -> tuple[Dataset, str]:
    """The dataset that a run was trained on, and where it lies."""
    settings = settings_of_run(source)
    catalog = scan(settings.path)
    return open_dataset(
        catalog, settings, channels=channels, cache=cache_folder(), say=lambda text: None
    ), settings.path


def _quantized(request: Request, model: ResNet, say: Callable[[str], None]) -> Quantized:
    """The network in integers: ranges by training images or a folder's, judged on the run's test or val split."""
    if model.preprocessing is None:
        raise unsaid(request.source, "preprocessing")
    channels, how = model.config.in_channels, model.preprocessing
    try:
        dataset, path = _data_of_run(request.source, channels)
    except (ResiduumError, KeyError, TypeError) as error:
        raise ConfigError(
            f"int8 is judged on the labelled images of a run, and {quoted(request.source)} gives none: "
            f"{quoted(str(error), 200)}; export a run folder whose data is there"
        ) from None
    split, name = _unseen(dataset)
    if name == "train":
        raise ConfigError(f"{quoted(path)} has no images that the run was not trained on; int8 cannot be judged")
    chosen = dataset.train
    if request.calibration is not None:
        files = _files(request.calibration)
        chosen = Split(tuple(files), torch.zeros(len(files), dtype=torch.int64))
    images = calibration(chosen, how, count=request.calibration_images)
    runtime: Runtime = "onnx" if request.to == "onnx" else "openvino"
    return quantize(model, images, split, runtime=runtime, max_drop=request.max_drop, say=say)


def _unseen(dataset: Dataset) -> tuple[Split, str]:
    for name in ("test", "val"):
        split = getattr(dataset, name)
        if split is not None and len(split.labels):
            return split, name
    return dataset.train, "train"


def _of_split(split: Split, channels: int) -> list[Tensor]:
    chosen = random.Random(0).sample(range(len(split)), min(IMAGES, len(split)))
    if isinstance(split.images, Tensor):
        return [split.images[i] for i in sorted(chosen)]
    return [read_image(split.images[i], channels).permute(1, 2, 0) for i in sorted(chosen)]


def _of_folder(folder: Path, channels: int) -> list[Tensor]:
    """Up to `IMAGES` images of a folder and those in it, chosen by chance, the same ones each time."""
    files = _files(folder)
    chosen = sorted(random.Random(0).sample(files, min(IMAGES, len(files))))
    return [read_image(path, channels).permute(1, 2, 0) for path in chosen]


def _files(folder: Path) -> list[str]:
    """The image files in a folder and those in it, in order; raises `DataError` for none."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {quoted(str(folder))}")
    return named_files([str(folder)])
