"""From file to file, in the layouts of other libraries; and a look into a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, WeightsError, quoted
from residuum.files import new_folder, read_text, write_text, write_whole
from residuum.preprocessing import IMAGENET, Preprocessing
from residuum.weights.checkpoint import State, expected_state, finite, unlike
from residuum.weights.detection import fitting_presets, infer_config
from residuum.weights.files import fit_whole, read_checkpoint, to_write, write_ours
from residuum.weights.layouts import LAYOUTS, check_layout, rename, to_theirs
from residuum.weights.published import check_classes, hugging_face_config, hugging_face_processor, imagenet_classes
from residuum.weights.reading import shown

TARGETS = ("residuum", "torchvision", "timm", "hf", "detectron2")


@dataclass(frozen=True)
class Inspection:
    """What a weights file is: `presets` fit it, or the nearest does but for the fields in `differing`."""

    # whose names the weights have
    layout: str
    # the network that they are of
    config: ResNetConfig
    # names of the presets that fit
    presets: tuple[str, ...]
    # where none fits: fields in which the nearest one differs
    differing: tuple[str, ...]
    # number of parameters
    parameters: int
    # number formats of the tensors
    precisions: tuple[str, ...]
    # names of the tensors that hold NaN or infinity
    not_finite: tuple[str, ...]
    # names of the classes, where the source says them
    classes: tuple[str, ...] | None
    # what happens to images before the network, where the source says it
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]  # on how the network was found in the file, and what is wrong with it, in sentences


def inspect(source: object, *, prefix: str | None = None) -> Inspection:
    """Look into any source that `read_checkpoint` reads, without building its network; raises `WeightsError`."""
    checkpoint = read_checkpoint(source, prefix=prefix)
    presets, differing = fitting_presets(infer_config(checkpoint.tensors))
    expected = expected_state(checkpoint.config, checkpoint.tensors, checkpoint.source)
    names = rename(checkpoint.tensors, LAYOUTS[checkpoint.layout], expected)
    ours = {new: checkpoint.tensors[old] for old, new in names.items()}
    # Counters, which frozen norms do not have, and classifiers that are a 1x1 convolution are no fault.
    expected = {name: value for name, value in expected.items() if name in ours or "num_batches" not in name}
    ours = {
        name: value.flatten(1) if name == "fc.weight" and value.ndim == 4 else value for name, value in ours.items()
    }
    wrong = unlike(ours, expected)
    floating = {name: value for name, value in checkpoint.tensors.items() if value.is_floating_point()}
    return Inspection(
        checkpoint.layout,
        checkpoint.config,
        tuple(presets),
        tuple(differing),
        sum(value.numel() for name, value in floating.items() if "running_" not in name),
        tuple(sorted({str(value.dtype).removeprefix("torch.") for value in floating.values()})),
        tuple(name for name, value in floating.items() if not finite(value)),
        checkpoint.classes,
        checkpoint.preprocessing,
        (*checkpoint.notes, *([f"this is no whole network of its config: {wrong}"] if wrong else [])),
    )


def convert(
    source: object,
    target: str | Path,
    to: str,
    *,
    prefix: str | None = None,
    preprocessing: Preprocessing | str | None = None,
    classes: Sequence[str] | str | Path | None = None,
) -> ResNetConfig:
    """Write the weights of a source in the layout of another library; gives the config that was found.

    `to` is residuum, torchvision, timm, hf or detectron2. `target` ends in .safetensors, .pt or .pth; for hf it may be
    a folder, which `from_pretrained` reads. Classes and preprocessing go along where the target can say them: into a
    .safetensors file of residuum, and into a folder for hf.

    A state dict says neither. `preprocessing` is what its images went through: "imagenet" for what torchvision's
    reference script and most others do (224x224 pixels cut from the middle of 256, ImageNet's mean and deviation,
    bilinear), a JSON file of the fields of `Preprocessing`, or any other source of weights whose own is taken.
    `classes` are the names, "imagenet" for its 1,000, or a text file with a name on each line. Raises `WeightsError`
    and `ConfigError`.
    """
    target = Path(target)
    if to not in TARGETS:
        raise WeightsError(f"there is no layout {quoted(to)} to convert to; choose one of {', '.join(TARGETS)}")
    folder = to == "hf" and target.suffix == ""
    if not folder and target.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"{shown(target)} does not end in .safetensors, .pt or .pth; name the file so")
    told = preprocessing is not None or classes is not None
    if told and not folder and (to, target.suffix) != ("residuum", ".safetensors"):
        raise WeightsError(
            f"{shown(target)} has no place for classes and preprocessing; they go into a .safetensors file of "
            "residuum, or into a folder for hf"
        )
    checkpoint = read_checkpoint(source, prefix=prefix)
    config, where = checkpoint.config, checkpoint.source
    ours = fit_whole(checkpoint.tensors, checkpoint.layout, config, where).state
    for name in expected_state(config, checkpoint.tensors, where):
        if name not in ours:  # a counter, which frozen norms do not have
            ours[name] = torch.tensor(0)
    names = check_classes(_names(classes), config) if classes is not None else checkpoint.classes
    names = names if len(names or ()) == config.num_classes else None
    how = _preprocessing(preprocessing, config) if preprocessing is not None else checkpoint.preprocessing
    how = how if how and how.channels == config.in_channels else None
    if to == "residuum" and target.suffix == ".safetensors":
        extra = {"several_classes": True} if checkpoint.several_classes else {}
        write_ours(ours, config, target, names, how, extra)
        return config
    state = in_layout(ours, config, to) if to != "residuum" else ours
    if folder or target.suffix == ".safetensors":
        content = to_bytes(to_write(state), {"format": "pt"})
        if folder:
            notes = _hugging_face_notes(config, names, how, several=checkpoint.several_classes)
            with new_folder(target, WeightsError) as place:
                for name, text in notes.items():
                    write_text(place / name, text, WeightsError)
                write_whole(place / "model.safetensors", lambda partial: partial.write_bytes(content), WeightsError)
        else:
            write_whole(target, lambda partial: partial.write_bytes(content), WeightsError)
    else:
        plain = {
            name: value.detach().clone() for name, value in state.items()
        }  # a view would be saved with all its file
        write_whole(target, lambda partial: torch.save(plain, partial), WeightsError)
    return config


def unsaid(source: object, *lacking: str) -> WeightsError:
    """The refusal of weights that do not say their classes or preprocessing, with the way to weights that do."""
    if not isinstance(source, str | Path):
        wanted = " and ".join(f"model.{name}" for name in lacking)
        return WeightsError(f"the network does not say its {' and '.join(lacking)}; set {wanted}")
    flags = {"classes": "--classes names.txt", "preprocessing": "--preprocessing imagenet"}
    return WeightsError(
        f"{quoted(str(source), 200)} does not say its {' and '.join(lacking)}; write weights that do: "
        f"residuum convert FILE net.safetensors {' '.join(flags[name] for name in lacking)}"
    )


def _names(classes: Sequence[str] | str | Path) -> Sequence[str]:
    """Names as they are, ImageNet's, or the lines of a text file."""
    if not isinstance(classes, str | Path):
        return classes
    if classes == "imagenet":
        return imagenet_classes()
    return [line.strip() for line in read_text(Path(classes), WeightsError).splitlines() if line.strip()]


def _preprocessing(given: Preprocessing | str, config: ResNetConfig) -> Preprocessing:
    """What `convert` was given, as data that fits the network; raises `WeightsError` and `ConfigError`."""
    found: Preprocessing | None
    if given == "imagenet":
        found = IMAGENET
    elif isinstance(given, str) and given.endswith(".json"):
        try:
            found = Preprocessing.from_dict(json.loads(read_text(Path(given), WeightsError)))
        except (json.JSONDecodeError, ConfigError) as error:
            raise WeightsError(f"{quoted(given)}: {error}") from None
    else:
        found = read_checkpoint(given).preprocessing if isinstance(given, str) else given
    if found is None:
        raise WeightsError(f"{quoted(given)} does not say its preprocessing itself; give imagenet, or a JSON file")
    if found.channels != config.in_channels:
        what = "imagenet" if given == "imagenet" else "the preprocessing"
        raise WeightsError(f"{what} is of {found.channels} channels, but the network takes {config.in_channels}")
    return found


def _hugging_face_notes(
    config: ResNetConfig, classes: tuple[str, ...] | None, preprocessing: Preprocessing | None, *, several: bool
) -> dict[str, str]:
    """What stands beside the weights: file name to text."""
    notes = {"config.json": hugging_face_config(config, classes, several=several)}
    if preprocessing is not None:
        notes["preprocessor_config.json"] = hugging_face_processor(preprocessing)
    return {name: json.dumps(values, indent=2) + "\n" for name, values in notes.items()}


def in_layout(state: Mapping[str, Tensor], config: ResNetConfig, to: str) -> State:
    """Our weights under the names of `to`; raises `WeightsError` where that library has no such network."""
    to = "timm-v2" if to == "timm" and config.preact else to
    check_layout(config, to)
    layout = LAYOUTS[to]
    named = {to_theirs(name, layout): value for name, value in state.items()}
    if to == "timm-v2" and "head.fc.weight" in named:
        named["head.fc.weight"] = named["head.fc.weight"][:, :, None, None]
    if to == "detectron2":  # its frozen norms do not count
        named = {name: value for name, value in named.items() if not name.endswith("num_batches_tracked")}
    return named
