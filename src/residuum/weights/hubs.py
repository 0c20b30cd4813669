"""Weights by reference: `torchvision:IMAGENET1K_V2`, `timm:resnet50.a1_in1k`, `hf:microsoft/resnet-50`.

Behind an `@` those of the last two may name a revision, a branch, tag or commit: `hf:owner/name@v2`.
What is downloaded stays in the folder that `residuum.files.cache_folder` gives, and can be placed there by hand.
"""

import contextlib
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from residuum.config import ResNetConfig
from residuum.errors import MissingExtraError, WeightsError, first_line, nearest, quoted, shortened
from residuum.extras import install
from residuum.files import cache_folder
from residuum.presets import PRESETS
from residuum.weights.published import UNSEEN, Said, of_torchvision
from residuum.weights.reading import shown

SOURCES = ("torchvision", "timm", "hf")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NOTES = ("config.json", "preprocessor_config.json")
_REFERENCE = re.compile(r"(\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(\w[\w./-]{0,95}))?", re.ASCII)


@dataclass(frozen=True)
class Fetch:
    """How repositories of the hub are fetched: the token, True for the one that is stored; the folder of the cache in
    place of the usual one; whether anew though they are there; whether never.
    """

    token: str | bool | None = None
    cache: Path | None = None
    anew: bool = False
    never: bool = False


def is_reference(source: object) -> bool:
    """Whether a text names weights of a library rather than a file."""
    return isinstance(source, str) and source.partition(":")[0] in SOURCES and ":" in source


def torchvision_weights(name: str, config: ResNetConfig | None) -> tuple[dict[str, Any], Said]:
    """The state dict of torchvision's weights and what it says of them; raises `WeightsError`.

    `config` says which of its networks is meant; `resnet50.IMAGENET1K_V2` says it itself.
    """
    from torchvision.models import get_model_weights, list_models

    model, _, tag = name.rpartition(".")
    model = model or _torchvision_name(config)
    known: list[str] = [m for m in list_models() if m in PRESETS]
    if model not in known:
        raise WeightsError(f"torchvision has no residual network {quoted(model)}{nearest(model, known)}")
    members = get_model_weights(model).__members__
    if tag not in members:
        raise WeightsError(f"torchvision has no weights {quoted(tag)} of {model}; it has {', '.join(members)}")
    weights: Any = members[tag]
    file = weights.url.rpartition("/")[2]
    # Who has used torchvision before has the file already.
    folders = (cache_folder() / "torchvision", Path(torch.hub.get_dir()) / "checkpoints")
    folder = next((folder for folder in folders if (folder / file).exists()), folders[0])
    _check_published(folder / file)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch says there what it downloads
            state = weights.get_state_dict(
                progress=False, check_hash=True, model_dir=str(folder), weights_only=True, map_location="cpu"
            )
    except (URLError, OSError) as error:
        reason = shortened(first_line(error), 100)
        raise WeightsError(
            f"{weights.url} cannot be fetched ({reason}); place the file at {shown(folder / file)}"
        ) from None
    except RuntimeError:  # torch's word for another checksum
        raise WeightsError(f"{weights.url} arrived damaged: its checksum differs; try again") from None
    return state, of_torchvision(model, weights)


def _check_published(path: Path) -> None:
    """Refuse a file whose name says another checksum than it has: torch checks only what it downloads itself."""
    said = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if said and path.exists() and not _sha256(path).startswith(said[1]):
        raise WeightsError(f"{shown(path)} is not the file that torchvision published: its checksum differs; remove it")


def _torchvision_name(config: ResNetConfig | None) -> str:
    from torchvision.models import list_models

    if config is None:
        raise WeightsError("say which of torchvision's networks: torchvision:resnet50.IMAGENET1K_V2")
    usual = ResNetConfig()
    free = {name: getattr(usual, name) for name in UNSEEN | {"num_classes", "in_channels"} if name != "width"}
    try:
        plain = config.replace(**free)
    except ValueError:  # dilation and the like apart, it is none of theirs
        plain = config
    names: list[str] = list_models()
    for name in names:
        if name in PRESETS and PRESETS[name].replace(**free) == plain:
            return name
    raise WeightsError("torchvision has no network of this config; give a path or another reference")


def hub_folder(reference: str, fetch: Fetch) -> tuple[Path, str]:
    """The folder of a repository's weights and of what stands beside them, and the repository's name.

    Downloaded where the weights are not there yet, and their checksum checked. Raises `WeightsError`, and
    `MissingExtraError` where huggingface_hub is needed and not installed.
    """
    library, _, name = reference.partition(":")
    found = _REFERENCE.fullmatch(f"timm/{name}" if library == "timm" else name)
    if found is None or ".." in name:
        raise WeightsError(f"{quoted(reference)} is no reference; write timm:NAME.TAG or hf:OWNER/NAME")
    repository, revision = found.groups()
    # A revision's folder lies beside the repository's own, and is no other repository's: names have no @.
    place = repository if revision is None else f"{repository}@{revision.replace('/', '@')}"
    folder = (fetch.cache or cache_folder()) / "hub" / place
    there = any((folder / file).is_file() for file in WEIGHTS)
    if fetch.never and not there:
        raise WeightsError(f"{quoted(reference)} is not in {shown(folder)}, and nothing is to be downloaded")
    if not fetch.never and (fetch.anew or not there):
        _download(repository, revision, reference, folder, fetch)
    return folder, repository


def _download(repository: str, revision: str | None, reference: str, folder: Path, fetch: Fetch) -> None:
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise MissingExtraError(
            f"{quoted(reference)} is fetched by huggingface_hub, which is not installed: {install('hub')}"
        ) from None
    place = f"place its {WEIGHTS[0]} and config.json in {shown(folder)}"
    hub = huggingface_hub.HfApi(token=fetch.token)
    try:
        info = hub.model_info(repository, revision=revision, files_metadata=True)
        siblings = info.siblings or ()
        listed = {file.rfilename: file for file in siblings}
        weights = next((name for name in WEIGHTS if name in listed), None)
        if weights is None:
            raise WeightsError(
                f"{quoted(reference)} has no {' and no '.join(WEIGHTS)}; convert its weights elsewhere, and give a path"
            )
        for name in (*(note for note in NOTES if note in listed), weights):  # the weights last: then all is there
            # Of one commit, should the branch move while it is fetched.
            hub.hf_hub_download(repository, name, revision=info.sha, local_dir=folder, force_download=fetch.anew)
    except WeightsError:
        raise
    except RepositoryNotFoundError:  # the hub says the same of what it does not show
        raise WeightsError(f"{quoted(reference)} does not exist on the hub, or is not public") from None
    except RevisionNotFoundError:
        raise WeightsError(f"{quoted(repository)} has no branch, tag or commit {quoted(revision)}") from None
    except Exception as error:  # what its transport raises is of kinds of its own
        reason = shortened(first_line(error), 100)
        raise WeightsError(f"{quoted(reference)} cannot be fetched ({reason}); {place}") from None
    said = listed[weights].lfs
    if said is not None and _sha256(folder / weights) != said.sha256:
        (folder / weights).unlink()
        raise WeightsError(f"{quoted(reference)} arrived damaged: its checksum differs from the hub's; try again")
    if fetch.anew:  # what another commit left would be read with the new weights, or in their place
        for name in {*WEIGHTS, *NOTES} - {weights, *listed}:
            (folder / name).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
