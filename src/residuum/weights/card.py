"""The card of a folder for the hub: README.md, with what is known of a network and nothing else."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from residuum.config import ResNetConfig
from residuum.cost import totals
from residuum.errors import WeightsError, quoted, shortened
from residuum.files import read_text
from residuum.preprocessing import Preprocessing


def figures_of(said: object) -> dict[str, Any]:
    """What an evaluation says, as far as the card shows it; raises `WeightsError` for something else."""
    if said is None:
        return {}
    try:
        found: dict[str, Any] = {"data": str(said["data"]), "split": str(said["split"])}  # type: ignore[index]
        for name in ("top1", "top5"):
            share = said.get(name)  # type: ignore[attr-defined]
            if share is not None and share["value"] is not None:
                low, high = (float(end) for end in share["interval"])
                found[name] = (float(share["value"]), low, high, int(share["of"]))
        if "top1" not in found:
            raise KeyError("top1")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"metrics are not what 'residuum evaluate' writes as evaluation.json ({shortened(str(error), 60)} is "
            "missing or wrong)"
        ) from None
    return found


def write_card(
    name: str,
    config: ResNetConfig,
    classes: tuple[str, ...] | None,
    preprocessing: Preprocessing | None,
    in_timm: bool,
    figures: dict[str, Any],
    training: str | None,
) -> str:
    """The text of the card; `figures` are those of an evaluation, `training` is what `training_of` gives."""
    tags = ["image-classification", "residuum", *(["timm", "transformers"] if in_timm else [])]
    head = ["---", f"library_name: {'timm' if in_timm else 'residuum'}", "pipeline_tag: image-classification", "tags:"]
    head += [f"- {tag}" for tag in tags]
    if figures:
        data = json.dumps(figures["data"])
        head += ["model-index:", f"- name: {json.dumps(name)}", "  results:", "  - task:"]
        head += ["      type: image-classification", "    dataset:", f"      name: {data}", f"      type: {data}"]
        head += [f"      split: {json.dumps(figures['split'])}", "    metrics:"]
        head += ["    - type: accuracy", f"      value: {figures['top1'][0]!r}"]
    size = preprocessing.image_size if preprocessing is not None else (224, 224)
    parameters, macs = totals(config, size)
    rows = [
        ("depth", f"{config.depth} weighted layers"),
        ("parameters", f"{parameters:,}"),
        ("multiply-adds", f"{macs:,} for an image of {size[0]} \N{MULTIPLICATION SIGN} {size[1]}"),
        ("image channels", f"{config.in_channels}"),
        ("classes", f"{config.num_classes:,}"),
    ]
    if preprocessing is not None:
        how = f"the central {preprocessing.crop:.4g} of the shorter side" if preprocessing.crop else "stretched"
        rows += [
            ("image size", f"{size[0]} \N{MULTIPLICATION SIGN} {size[1]}, {how}, {preprocessing.interpolation}"),
            ("mean, deviation", f"{list(preprocessing.mean)}, {list(preprocessing.std)}"),
        ]
    for key, label in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
        if key in figures:
            value, low, high, count = figures[key]
            rows.append((label, f"{100 * value:.2f} % ({100 * low:.2f} to {100 * high:.2f} %) of {count:,} images"))
    if figures:
        rows.append(("evaluated on", f"{figures['data']}, split {figures['split']}; intervals hold 95 % (Wilson)"))
    lines = [*head, "---", "", f"# {_plain(name)}", "", "A residual network for image classification.", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {_plain(value)} |" for key, value in rows), ""]
    lines += ["## Use it", "", "`PATH` is this folder, or owner/name on the hub.", ""]
    lines += ["```python", "import residuum", "", 'model = residuum.from_pretrained("PATH")', "```", ""]
    if in_timm:
        lines += ["```python", "import timm", "", 'model = timm.create_model("local-dir:PATH", pretrained=True)']
        lines += [
            "```",
            "",
            "```python",
            "from transformers import AutoImageProcessor, AutoModelForImageClassification",
        ]
        lines += ["", 'model = AutoModelForImageClassification.from_pretrained("PATH")']
        lines += ['processor = AutoImageProcessor.from_pretrained("PATH")', "```", ""]
    if classes is not None:
        some = ", ".join(_plain(shortened(c, 60)) for c in classes[:50])
        more = f", and {len(classes) - 50:,} more" if len(classes) > 50 else ""
        lines += ["## Classes", "", f"{some}{more}", ""]
    lines += ["## Config", "", "```toml", config.to_toml().rstrip("\n"), "```", ""]
    if training is not None:
        lines += ["## Training", "", "By `residuum train`, with this recipe:", "", "```toml", training, "```", ""]
    return "\n".join(lines)


def training_of(run: str | Path) -> str:
    """The recipe of a run folder without the network, which the card shows anyway, and with no path of this machine.

    Raises `WeightsError` for a folder that holds no recipe.
    """
    try:
        text = read_text(Path(run) / "recipe.toml", WeightsError)
        recipe = tomllib.loads(text)
        recipe.pop("model", None)
        data = recipe["data"]
        data["path"] = Path(str(data["path"])).name
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error if isinstance(error, WeightsError) else "its recipe.toml is damaged or missing"
        raise WeightsError(f"{quoted(str(run))} is no run whose recipe the card can show: {reason}") from None
    # What is in the file may have been written by anybody: it ends no fence.
    return tomli_w.dumps(recipe).replace("`", "'").rstrip("\n")


def _plain(text: str) -> str:
    return re.sub(r"([\\|<>`\[\]*_#])", r"\\\1", shortened(text, 300))
