"""What libraries say of their weights beside the tensors: fields of the config, names of classes, preprocessing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from residuum.config import ResNetConfig
from residuum.errors import ConfigError, WeightsError, quoted
from residuum.preprocessing import Preprocessing
from residuum.presets import PRESETS
from residuum.weights.reading import NAMES, read_json, shown

# Fields without parameters, and how the channels came about: what a preset tells and its weights do not.
UNSEEN = frozenset({
    "antialias", "activation", "stride_on", "first_stride", "output_stride", "zero_init_residual", "stochastic_depth",
    "stochastic_depth_mode", "dropout", "weight_standardization", "width",
})  # fmt: skip
IMAGENET = 1000
OURS = "residuum"  # what this package has to know, in a config.json
_SEVERAL = "multi_label_classification"  # what Hugging Face calls images that may be of several classes
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Hugging Face writes Pillow's numbers


@dataclass(frozen=True)
class Said:
    """What is known of weights beside their tensors; `fields` are those of the config that weights do not tell."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    several_classes: bool = False
    sha256: str | None = None  # of the tensors, where it was noted


def of_architecture(name: object) -> dict[str, Any]:
    """The fields that a preset tells and its weights do not; nothing for a name that is no preset."""
    if not isinstance(name, str) or name not in PRESETS:
        return {}
    config = PRESETS[name]
    return {f: getattr(config, f) for f in sorted(UNSEEN - {"width"})}


def of_torchvision(name: str, weights: Any) -> Said:
    """What torchvision's weights enum says: its categories, and its transforms as data."""
    crop = weights.transforms()
    side, shorter = crop.crop_size[0], crop.resize_size[0]
    preprocessing = Preprocessing(
        len(crop.mean), (side, side), tuple(crop.mean), tuple(crop.std), side / shorter, crop.interpolation.value
    )
    return Said(of_architecture(name), tuple(weights.meta["categories"]), preprocessing)


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order that all three libraries use, from torchvision."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def beside(path: Path, layout: str, repository: str = "") -> Said:
    """What the `config.json` and `preprocessor_config.json` in the folder of a weights file say of its weights.

    They are ours, timm's or Hugging Face's; others are not looked at. Raises `WeightsError` for a damaged one.
    """
    folder = path if path.is_dir() else path.parent
    try:
        if not (folder / "config.json").is_file():
            return Said()
        values = read_json(folder / "config.json")
        if not isinstance(values, dict):
            return Said()
        if isinstance(values.get(OURS), dict):
            said = _ours(values[OURS])
            return said if path.name in NAMES else _of_another_file(said)
        if layout == "hf" and values.get("model_type", "resnet") == "resnet":
            processor = folder / "preprocessor_config.json"
            return _hugging_face(values, read_json(processor) if processor.is_file() else None)
        if layout != "hf" and isinstance(values.get("pretrained_cfg"), dict):
            return _timm(values, repository)
    except (AttributeError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{shown(folder / 'config.json')}, or the preprocessor's beside it, cannot be read: {error}"
        ) from None
    return Said()


def _ours(values: dict[str, Any]) -> Said:
    config = ResNetConfig.from_dict(values["config"])
    said = values.get("preprocessing")
    preprocessing = None if said is None else Preprocessing.from_dict(said)
    classes = check_classes(values.get("classes"), config)
    return Said(config.to_dict(), classes, preprocessing, values.get("several_classes") is True, values.get("sha256"))


def _of_another_file(said: Said) -> Said:
    """What the notes of a folder's own weights say of others in it: what weights do not tell, but not their digest."""
    fields = {name: said.fields[name] for name in sorted(UNSEEN - {"width"})}
    return replace(said, fields=fields, sha256=None)


def _timm(values: dict[str, Any], repository: str) -> Said:
    given = values["pretrained_cfg"]
    names = values.get("label_names", given.get("label_names"))
    classes = _names(names)
    count = values.get("num_classes", given.get("num_classes"))
    tag = f"{given.get('tag', '')} {given.get('hf_hub_id', '')} {repository}"
    if classes is None and count == IMAGENET and "in1k" in tag:
        classes = imagenet_classes()
    size = given.get("input_size", (3, 224, 224))
    crop = 0.0 if given.get("crop_mode") == "squash" else _rounded_down(size, given.get("crop_pct", 0.875))
    preprocessing = _preprocessing(size, given.get("mean"), given.get("std"), crop, given.get("interpolation"))
    return Said(of_architecture(values.get("architecture")), classes, preprocessing)


def _hugging_face(values: dict[str, Any], processor: object) -> Said:
    fields: dict[str, Any] = {"activation": values.get("hidden_act", "relu")}
    if values.get("downsample_in_first_stage"):
        fields |= {"first_stride": 2, "output_stride": 64}
    if values.get("downsample_in_bottleneck"):
        fields["stride_on"] = "1x1"
    labels = values.get("id2label")
    classes = None
    if isinstance(labels, dict) and set(labels) == {str(i) for i in range(len(labels))}:
        classes = _names([labels[str(i)] for i in range(len(labels))])
        if classes == tuple(f"LABEL_{i}" for i in range(len(labels))):  # what that library writes where it knows none
            classes = None
    preprocessing = _of_processor(processor) if isinstance(processor, dict) else None
    return Said(fields, classes, preprocessing, values.get("problem_type") == _SEVERAL)


def _of_processor(values: dict[str, Any]) -> Preprocessing | None:
    size = values.get("size", 224)
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    crop: object = 0.0
    if "height" in size:
        height, width = size["height"], size["width"]
    else:
        height = width = size["shortest_edge"]
        if "crop_pct" in values and height < 384:  # above, that library's ConvNext and ResNet stretch
            crop = _rounded_down((height,), values["crop_pct"])
        elif "crop_pct" not in values:
            inner = values.get("crop_size", height)
            inner = inner if isinstance(inner, dict) else {"height": inner, "width": inner}
            shorter = height
            height, width = inner["height"], inner["width"]
            crop = min(height, width) / shorter
    mean, std = values.get("image_mean"), values.get("image_std")
    if not values.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if not values.get("do_rescale", True):
        return None  # values from 0 to 255
    interpolation = _PILLOW.get(values.get("resample", 3))
    return _preprocessing((len(mean or ()), height, width), mean, std, crop, interpolation)


def _rounded_down(size: Any, crop: Any) -> Any:
    """The share of a crop whose scaled side, which we round to the nearest, is that of a library that rounds down."""
    try:
        shorter = min(size[-2:])
        down = int(shorter / crop)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):  # which the preprocessing will refuse
        return crop
    return crop if round(shorter / crop) == down else shorter / down


def _preprocessing(size: Any, mean: Any, std: Any, crop: Any, interpolation: object) -> Preprocessing | None:
    """None where a library does what has no field here, such as timm's random interpolation."""
    try:
        channels, height, width = size
        return Preprocessing(channels, (height, width), tuple(mean), tuple(std), float(crop), interpolation)  # type: ignore[arg-type]
    except (ConfigError, TypeError, ValueError):
        return None


def _names(values: object) -> tuple[str, ...] | None:
    if isinstance(values, Sequence) and values and all(isinstance(name, str) for name in values):
        return tuple(values)
    return None


# -- out ---------------------------------------------------------------------------------------------------------------


def hugging_face_config(
    config: ResNetConfig, classes: tuple[str, ...] | None, *, several: bool = False
) -> dict[str, Any]:
    """The config.json of a network that Hugging Face's layout can say; `several` is whether images may be of several
    classes.
    """
    labels = {str(i): classes[i] if classes else f"LABEL_{i}" for i in range(config.num_classes)}
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": config.in_channels,
        "embedding_size": config.stem_channels[-1],
        "hidden_sizes": [stage.channels for stage in config.stages],
        "depths": list(config.depths),
        "layer_type": config.block,
        "hidden_act": config.activation,
        "downsample_in_first_stage": config.first_stride == 2,
        "downsample_in_bottleneck": config.stride_on == "1x1",
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    } | ({"problem_type": _SEVERAL} if several else {})


def hugging_face_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The preprocessor_config.json of a preprocessing: of a processor of that library that does the same.

    Raises `WeightsError` where none does.
    """
    height, width = preprocessing.image_size
    if preprocessing.crop and height != width:  # its shorter side is scaled to one length, whichever side that is
        raise WeightsError(
            f"Hugging Face has no image processor that crops {height}x{width} as this preprocessing does; give one "
            "with a square image_size or a crop of 0, or convert to a .safetensors file"
        )
    numbers = {name: number for number, name in _PILLOW.items()}
    values: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": numbers[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.crop:
        values |= {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": round(min(height, width) / preprocessing.crop)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_convert_rgb": True,
        }
    return values


def check_classes(classes: object, config: ResNetConfig) -> tuple[str, ...] | None:
    """Names of classes as a tuple; raises `ConfigError` where they are none, or not as many as the network has."""
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not all(isinstance(c, str) for c in classes):
        raise ConfigError(f"classes is {quoted(classes)}; it must be a list of names")
    if len(classes) != config.num_classes:
        raise ConfigError(f"there are {len(classes)} names of classes, but the network has {config.num_classes}")
    return tuple(classes)
