"""Weights by reference: `torchvision:IMAGENET1K_V2`, `timm:resnet50.a1_in1k`, `hf:microsoft/resnet-50`."""

import hashlib
import json
import os
import re
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import torch

from residuum.config import ResNetConfig
from residuum.errors import WeightsError, first_line, nearest
from residuum.presets import PRESETS
from residuum.weights.detection import UNSEEN

SOURCES = ("torchvision", "timm", "hf")
FILE = "model.safetensors"
HUB = "https://huggingface.co"


def is_reference(source: str | Path) -> bool:
    """Whether a text names weights of a library rather than a file."""
    return isinstance(source, str) and source.partition(":")[0] in SOURCES and not Path(source).exists()


def fetch(reference: str | Path, config: ResNetConfig | None) -> Path:
    """The file of a reference, downloaded where it is not there yet and its checksum checked; raises `WeightsError`.

    `config` says which of torchvision's networks is meant; `torchvision:resnet50.IMAGENET1K_V2` says it itself.
    """
    library, _, name = str(reference).partition(":")
    if library == "torchvision":
        return _torchvision(name, config)
    repository = f"timm/{name}" if library == "timm" else name
    return _hub(repository, str(reference))


def _torchvision(name: str, config: ResNetConfig | None) -> Path:
    from torchvision.models import get_model_weights, list_models

    said, _, tag = name.rpartition(".")
    model = said or _torchvision_name(config)
    known: list[str] = [m for m in list_models() if m in PRESETS]
    if model not in known:
        raise WeightsError(f"torchvision has no residual network {model!r}{nearest(model, known)}")
    weights = get_model_weights(model).__members__
    if tag not in weights:
        raise WeightsError(f"torchvision has no weights {tag!r} of {model}; it has {', '.join(weights)}")
    url = weights[tag].url
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (URLError, OSError) as error:
            raise WeightsError(f"{url} cannot be fetched ({first_line(error)}); place the file at {path}") from None
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected and not _sha256(path).startswith(expected[1]):
        raise WeightsError(f"{path} is not the file that torchvision published: its checksum differs; remove it")
    return path


def _torchvision_name(config: ResNetConfig | None) -> str:
    from torchvision.models import list_models

    if config is None:
        raise WeightsError("say which of torchvision's networks: torchvision:resnet50.IMAGENET1K_V2")
    usual = ResNetConfig()
    free = {name: getattr(usual, name) for name in UNSEEN | {"num_classes", "in_channels"} if name != "width"}
    plain = config.replace(**free)
    names: list[str] = list_models()
    for name in names:
        if name in PRESETS and PRESETS[name].replace(**free) == plain:
            return name
    raise WeightsError("torchvision has no network of this config; give a path or another reference")


def _hub(repository: str, reference: str) -> Path:
    """A file of the Hugging Face hub, kept in a folder of our own, where it can also be placed by hand."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise WeightsError(f"{reference!r} is no reference; write timm:NAME.TAG or hf:OWNER/NAME")
    root = Path(os.environ.get("RESIDUUM_CACHE", "~/.cache/residuum")).expanduser()
    path = root / "hub" / repository / FILE
    if path.exists():
        return path
    try:
        with urlopen(f"{HUB}/api/models/{repository}/tree/main", timeout=30) as answer:
            listed = {entry["path"]: entry for entry in json.load(answer)}
        if FILE not in listed:
            raise WeightsError(f"{reference} has no {FILE}; convert its weights elsewhere and give their path")
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = listed[FILE].get("lfs", {}).get("oid")
        torch.hub.download_url_to_file(f"{HUB}/{repository}/resolve/main/{FILE}", str(path), checksum, progress=False)
    except HTTPError as error:
        if error.code in (401, 403, 404):  # the hub says 401 for what does not exist
            raise WeightsError(f"{reference} does not exist on the hub, or is not public") from None
        raise WeightsError(f"{reference} cannot be fetched ({error}); place its {FILE} at {path}") from None
    except RuntimeError:
        raise WeightsError(f"{reference} arrived damaged: its checksum differs from the hub's; try again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{reference} cannot be fetched ({first_line(error)}); place its {FILE} at {path}") from None
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
