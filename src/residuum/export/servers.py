"""Folders that model servers load: NVIDIA's Triton and OpenVINO Model Server, from a file that `export` wrote."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

from residuum.errors import ConfigError, ExportError, quoted, shortened
from residuum.files import new_folder, write_text
from residuum.runtimes.exported import PRECISION, Exported, opened

Server = Literal["triton", "ovms"]
MOST_TOGETHER = 32  # images of one size that Triton may put into one batch
DELAY = 500  # microseconds that Triton waits for more of them
# A file's ending to Triton's backend.
_BACKENDS = {".onnx": "onnxruntime", ".xml": "openvino"}


def server_folder(file: str | Path, folder: str | Path, server: Server, *, name: str | None = None) -> Path:
    """Write a new folder that a server loads as its models, with a copy of an exported file in it; gives the model's.

    `server` is `triton` (files .onnx and .xml) or `ovms` (.xml, and .onnx that does not scale). `name` is the model's
    for its clients, the file's where left out. The model takes `images` and gives `logits`, as the file does; where
    all images have one size, Triton batches requests. Raises `ConfigError` for a server, a name or a file that does not
    go together, `ExportError` for a file that is not of `export` or a folder that is there or cannot be written.
    """
    file, folder = Path(file), Path(folder)
    check_server(server, file)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem).strip("-") or "model" if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", name, re.ASCII):
        raise ConfigError(f"name is {quoted(name)}; it must be of letters, digits, - and _")
    found = opened(file, runtime="openvino" if server == "ovms" else "auto")
    if server == "ovms" and found.takes == "image" and found.channels == 3 and found.note["order"] != "bgr":
        raise ConfigError(
            f"OpenVINO Model Server decodes photographs as BGR, and {quoted(str(file))} takes RGB; export it with "
            "order bgr"
        )
    check_server(server, file, found.note.get(PRECISION))
    with new_folder(folder, ExportError) as partial:
        version = partial / name / "1"
        version.mkdir(parents=True)
        shutil.copyfile(file, version / f"model{file.suffix}")
        if file.suffix == ".xml":
            shutil.copyfile(file.with_suffix(".bin"), version / "model.bin")
        if server == "triton":
            write_text(partial / name / "config.pbtxt", triton_config(found, name), ExportError)
            labels = "".join(f"{shortened(label, 200)}\n" for label in found.classes or ())
            if labels:
                write_text(partial / name / "labels.txt", labels, ExportError)
        else:
            model: dict[str, Any] = {"name": name, "base_path": name}
            if PRECISION in found.note:
                model["plugin_config"] = {"INFERENCE_PRECISION_HINT": "f32"}
            config = {"model_config_list": [{"config": model}]}
            write_text(partial / "config.json", json.dumps(config, indent=2) + "\n", ExportError)
    return folder / name


def check_server(server: Server, file: Path, precision: str | None = None) -> None:
    """Raise `ConfigError` for a server that there is not, or a file, proved in a `precision`, that it cannot run."""
    if server not in get_args(Server):
        raise ConfigError(f"server is {quoted(server)}; it must be one of {', '.join(get_args(Server))}")
    if file.suffix not in _BACKENDS:
        raise ConfigError(f"{quoted(str(file))} is not what {server} loads: export to .onnx or .xml")
    if server == "triton" and file.suffix == ".xml" and precision == "fp32":
        raise ConfigError(
            f"{quoted(str(file))} is proved in fp32 alone, which a folder for Triton cannot ask OpenVINO for; export "
            "to onnx, which is computed in fp32"
        )


def triton_config(found: Exported, name: str) -> str:
    """The config.pbtxt of an exported file.

    Images of any size come as they are, the number of them included; those of one size are batched by the server.
    """
    batched = found.takes != "image" and not found.note["dynamic_size"]
    shape, count = input_shape(found), int(found.note["config"]["num_classes"]) or -1
    free: list[int] = [] if batched else [-1]
    sections: list[dict[str, Any]] = [
        {
            "name": "images",
            "data_type": "TYPE_FP32" if found.takes == "normalized" else "TYPE_UINT8",
            "dims": [*free, *shape],
        },
        {"name": "logits", "data_type": "TYPE_FP32", "dims": [*free, count]},
    ]
    if found.classes:
        sections[1]["label_filename"] = "labels.txt"
    lines = [
        f"name: {_text(name)}",
        f"backend: {_text(_BACKENDS[found.path.suffix])}",
        f"max_batch_size: {MOST_TOGETHER if batched else 0}",
    ]
    for kind, values in zip(("input", "output"), sections, strict=True):
        lines += [f"{kind} [", "  {"]
        for key, value in values.items():
            word = key in ("name", "label_filename")
            lines.append(f"    {key}: {_text(value) if word else value}")
        lines += ["  }", "]"]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY} }}")
    return "\n".join(lines) + "\n"


def input_shape(found: Exported) -> list[int]:
    """What a file takes for one image, -1 for a length that is free."""
    free = found.takes == "image" or found.note["dynamic_size"]
    size = [-1, -1] if free else list(found.image_size)
    return [found.channels, *size] if found.takes == "normalized" else [*size, found.channels]


def _text(value: str) -> str:
    return json.dumps(value)
