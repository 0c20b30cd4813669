"""One folder for the hub, which this package, timm and transformers load: weights, config, preprocessing and a card.

model.safetensors    the weights, under timm's names where timm has the network
config.json          timm's config where timm has the network, and under `residuum` all that this package has to know
README.md            the card, of what is known and nothing else
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import nn

from residuum.config import EXPANSION, ResNetConfig
from residuum.errors import ConfigError, WeightsError, first_line, quoted, shortened
from residuum.extras import need
from residuum.files import new_folder, write_text, write_whole
from residuum.nn.resnet import ResNet
from residuum.nn.wrapping import unwrapped
from residuum.preprocessing import Preprocessing
from residuum.presets import PRESETS
from residuum.weights.card import figures_of, training_of, write_card
from residuum.weights.checkpoint import State
from residuum.weights.converting import in_layout
from residuum.weights.files import digest, load, to_write
from residuum.weights.hubs import Fetch
from residuum.weights.published import OURS, check_classes
from residuum.weights.reading import read_json, shown
from residuum.weights.surgery import whole_network

# What timm takes as arguments, under its names: the rest of a config has to be that of a preset which timm has.
_TRAINING = ("zero_init_residual", "stochastic_depth", "stochastic_depth_mode", "dropout")
_ARGUMENTS = ("depths", "widths", "width", "stem_width", "num_classes", "in_channels", "output_stride")
_ABSENT = ("cifar_", "preresnet", "cifar_preresnet", "digits_")
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


# -- in ----------------------------------------------------------------------------------------------------------------


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> ResNet:
    """The network of a folder that `save_pretrained` or another library wrote, or of `owner/name` on the hub.

    In evaluation mode, with `classes` and `preprocessing`. A folder comes before a name. What is downloaded is kept
    below `cache_dir`, the folder that `RESIDUUM_CACHE` names where it is left out, and not asked for again: a
    `revision` (branch, tag or commit) is kept apart from others, and `force_download` fetches it anew. `token` is that
    of 'hf auth login' where it is left out. Raises `WeightsError`, and `MissingExtraError` where a download needs
    huggingface_hub.
    """
    if Path(source).is_dir():
        return load(source)
    if isinstance(source, str) and _REPOSITORY.fullmatch(source):
        fetch = Fetch(token, None if cache_dir is None else Path(cache_dir), force_download, local_files_only)
        return load(f"hf:{source}" if revision is None else f"hf:{source}@{revision}", fetch=fetch)
    raise WeightsError(f"{quoted(str(source))} is no folder, and no owner/name of the hub; give one of the two")


# -- out ---------------------------------------------------------------------------------------------------------------


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    metrics: Mapping[str, Any] | str | Path | None = None,
    run: str | Path | None = None,
) -> None:
    """Write a network as a folder that `from_pretrained`, timm (`local-dir:`) and transformers load.

    timm and transformers load it where timm has the network; where it has not, `config.json` says `library_name:
    residuum`. `classes` and `preprocessing` are the network's own where they are left out. `metrics` goes into the
    card: what `residuum evaluate` wrote as evaluation.json, or its path. So does the recipe of `run`, the folder of the
    run that trained it. Raises `WeightsError` for what `save` refuses, for metrics or a run that are none, and for a
    folder that is there already.
    """
    config, state = whole_network(model)
    network = unwrapped(model)
    assert isinstance(network, ResNet)
    if classes is None and len(network.classes or ()) == config.num_classes:
        classes = network.classes
    if preprocessing is None and network.preprocessing is not None:
        preprocessing = network.preprocessing if network.preprocessing.channels == config.in_channels else None
    try:
        names = check_classes(classes, config)
        if preprocessing is not None and preprocessing.channels != config.in_channels:
            raise ConfigError(f"preprocessing has {preprocessing.channels} channels, the network {config.in_channels}")
    except ConfigError as error:
        raise WeightsError(f"nothing was saved: {error}") from None
    said = read_json(Path(metrics)) if isinstance(metrics, str | Path) else metrics
    figures, training = figures_of(said), None if run is None else training_of(run)
    theirs = timm_arguments(config)
    state = in_layout(state, config, "timm") if theirs is not None else state
    tensors = to_write(state)
    values = _config(config, names, preprocessing, theirs, tensors, several=network.several_classes)
    # transformers refuses a file that does not say this; one key, so that equal weights are equal files.
    content = to_bytes(tensors, {"format": "pt"})
    card = write_card(Path(folder).name, config, names, preprocessing, theirs is not None, figures, training)
    with new_folder(Path(folder), WeightsError) as partial:
        write_text(partial / "config.json", json.dumps(values, indent=2) + "\n", WeightsError)
        write_text(partial / "README.md", card, WeightsError)
        write_whole(partial / "model.safetensors", lambda path: path.write_bytes(content), WeightsError)


def publish(
    source: object,
    folder: Path,
    *,
    prefix: str | None = None,
    metrics: str | Path | None = None,
    repository: str | None = None,
) -> tuple[ResNetConfig, str | None]:
    """Write the network of any source that `load` takes as a folder, and upload it where a repository is named.

    Gives the network's config and the repository's address. What stands against the upload is said first. The card of a
    run's network shows its recipe.
    """
    if repository is not None:
        _check_upload(repository, None)
    model = load(source, prefix=prefix)
    run = source if isinstance(source, str | Path) and (Path(source) / "recipe.toml").is_file() else None
    save_pretrained(model, folder, metrics=metrics, run=run)
    return model.config, None if repository is None else push(folder, repository)


def timm_arguments(config: ResNetConfig) -> tuple[str, dict[str, Any]] | None:
    """Timm's name of a network and the arguments that `timm.create_model` needs besides; None where timm has not it."""
    free = (*_TRAINING, *_ARGUMENTS)
    best: tuple[int, str] | None = None
    for name, preset in PRESETS.items():
        if name.startswith(_ABSENT) or len(preset.depths) != len(config.depths):
            continue
        changed = {field: getattr(config, field) for field in free}
        try:
            same = preset.replace(**changed) == config
        except ConfigError:
            continue
        differing = sum(getattr(preset, field) != getattr(config, field) for field in _ARGUMENTS)
        if same and (best is None or differing < best[0]):
            best = differing, name
    if best is None:
        return None
    preset = PRESETS[best[1]]
    arguments: dict[str, Any] = {}
    if config.depths != preset.depths:
        arguments["layers"] = list(config.depths)
    if config.in_channels != preset.in_channels:
        arguments["in_chans"] = config.in_channels
    if config.output_stride != preset.output_stride:
        arguments["output_stride"] = config.output_stride
    if any(getattr(config, field) != getattr(preset, field) for field in ("widths", "width", "stem_width")):
        widths = _width_arguments(config)
        if widths is None or preset.width != 1:
            return None
        arguments |= widths
    return best[1], arguments


def _width_arguments(config: ResNetConfig) -> dict[str, Any] | None:
    """Channels and stem as timm's arguments; None where timm would make others of them."""
    outs, stem = [stage.channels for stage in config.stages], config.stem_channels[-1]
    if config.preact:
        expected = [out // EXPANSION[kind] for out, kind in zip(outs, config.kinds, strict=True)]
        if [stage.blocks[0].width for stage in config.stages] != expected or any(width % 8 for width in expected):
            return None
        return {"channels": outs, "stem_chs": stem}
    planes = [out // EXPANSION[kind] for out, kind in zip(outs, config.kinds, strict=True)]
    inner = [
        plane if kind == "basic" else plane * config.width_per_group // 64 * config.groups
        for plane, kind in zip(planes, config.kinds, strict=True)
    ]
    if [stage.blocks[0].width for stage in config.stages] != inner:
        return None
    if config.stem == "conv7":
        return {"channels": planes} if stem == 64 else None  # timm's plain stem is always of 64 channels
    return {"channels": planes, "stem_width": stem // 2}


def _config(
    config: ResNetConfig,
    classes: tuple[str, ...] | None,
    preprocessing: Preprocessing | None,
    theirs: tuple[str, dict[str, Any]] | None,
    tensors: State,
    *,
    several: bool,
) -> dict[str, Any]:
    ours = {
        "config": config.to_dict(),
        "classes": classes,
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        "several_classes": several,
        "sha256": digest(tensors),
    }
    if theirs is None:
        return {"library_name": "residuum", OURS: ours}
    values: dict[str, Any] = {
        "library_name": "timm",
        "architecture": theirs[0],
        "num_classes": config.num_classes,
        "num_features": config.num_features,
        "model_args": theirs[1],
        "pretrained_cfg": _pretrained_cfg(config, preprocessing),
        OURS: ours,
    }
    if classes is None:  # without names transformers would take ImageNet's, or fail
        classes = tuple(f"LABEL_{i}" for i in range(config.num_classes))
    return values | {"label_names": classes}


def _pretrained_cfg(config: ResNetConfig, preprocessing: Preprocessing | None) -> dict[str, Any]:
    size = preprocessing.image_size if preprocessing is not None else (224, 224)
    values: dict[str, Any] = {
        "num_classes": config.num_classes,
        "input_size": [config.in_channels, *size],
        "fixed_input_size": False,
        "pool_size": [-(-side // config.stages[-1].stride) for side in size],
        "first_conv": ("stem.conv" if config.stem == "conv7" else "stem.conv1") if config.preact
        else ("conv1" if config.stem == "conv7" else "conv1.0"),
        "classifier": "head.fc" if config.preact else "fc",
    }  # fmt: skip
    if preprocessing is None:
        return values
    crop = preprocessing.crop
    if crop:
        shorter, scaled = min(size), round(min(size) / crop)
        if int(shorter / crop) != scaled:  # timm rounds down where we round to the nearest
            crop = shorter / (scaled + 0.25)
    return values | {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "crop_pct": crop or 1.0,
        "crop_mode": "center" if crop else "squash",
    }


# -- to the hub --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """How a folder is uploaded: the commit's message; whether a repository that is made is private; the token, of
    'hf auth login' where it is left out; the branch, the main one unless one is named that is there; whether as a pull
    request.
    """

    commit_message: str | None = None
    private: bool = True
    token: str | None = None
    branch: str | None = None
    create_pr: bool = False


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    commit_message: str | None = None,
    private: bool = True,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    **card: Any,
) -> str:
    """Upload a network to `owner/name` on the hub as the folder that `save_pretrained` writes; gives its address.

    The repository is made where it is not there yet. It goes to the main `branch` unless one is named that is there,
    and to a pull request with `create_pr`. `token` is that of 'hf auth login' where it is left out. `card` is what
    `save_pretrained` takes besides the folder: `classes`, `preprocessing`, `metrics`, `run`. Raises what that raises,
    `WeightsError` without a token and for whatever the hub refuses, and `MissingExtraError`; what stands against the
    upload is said first.
    """
    _check_upload(repository, token)
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / repository.rpartition("/")[2]
        save_pretrained(model, folder, **card)
        return push(folder, repository, Upload(commit_message, private, token, branch, create_pr))


def push(folder: str | Path, repository: str, how: Upload = Upload()) -> str:
    """Upload a folder to `owner/name` on the hub, which is made where it is not there yet; gives its address.

    Raises `WeightsError` without a token and for whatever the hub refuses, and `MissingExtraError`.
    """
    hub = _check_upload(repository, how.token).HfApi(token=how.token)
    try:
        address = hub.create_repo(repository, private=how.private, exist_ok=True)
        hub.upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message=how.commit_message or f"Upload {shown(Path(folder).name)}",
            revision=how.branch,
            create_pr=how.create_pr,
        )
    except Exception as error:  # what its transport raises is of kinds of its own
        reason = shortened(first_line(error), 200)
        raise WeightsError(f"{quoted(repository)} was not uploaded ({reason}); nothing here was changed") from None
    return str(address)


def _check_upload(repository: str, token: str | None) -> Any:
    """The library that uploads; raises `WeightsError` for a name that cannot be, and without a token."""
    if not _REPOSITORY.fullmatch(repository):
        raise WeightsError(f"{quoted(repository)} is no repository of the hub; write owner/name")
    library = need("huggingface_hub", extra="hub")
    if not token and library.get_token() is None:
        raise WeightsError("the hub wants to know who you are: run 'hf auth login', or set HF_TOKEN")
    return library
