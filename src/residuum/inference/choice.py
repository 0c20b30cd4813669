"""The engine that runs a network: made for the images that come, proven, and of several the fastest."""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import residuum
from residuum.devices import now, processor
from residuum.errors import ExportError, ResiduumError
from residuum.extras import version_of
from residuum.files import cache_folder, write_text
from residuum.inference.engines import (
    LIBRARIES,
    TOLERANCE,
    TORCHS,
    CompiledRun,
    Run,
    Shape,
    aoti_run,
    difference,
    made_up,
    onnxruntime_run,
    openvino_run,
    program_of,
)

TURN = 0.15  # seconds, about, that an engine runs before the next one has its turn
TURNS = 5  # of each engine, the shortest of which counts: what disturbs a machine only adds to a time
GAIN = 1.02  # by which another engine must be faster than eager mode, which needs no preparation, to be taken
SIZES_KEPT = 4  # of images, for each of which an engine holds the network once more
MOST_PROVEN = 8  # images of a batch that engines of other makers are proven on, which compute each by itself


@dataclass(frozen=True)
class Setting:
    """What an engine is made from. `fold` gives the network in a precision, of torch's ordinary operations."""

    engines: tuple[str, ...]  # one that was named, or all from which the fastest is taken
    asked: str  # precision
    precision: str  # of torch's engines, which follows from `asked` and the device
    device: torch.device
    threads: int
    fold: Callable[[str], nn.Module]
    package: Path | None = None


class Runs:
    """Images as the engines take them, float32 (N, C, H, W) -> logits, float32.

    `network` is what all are compared with: the network as it was given, in float32. `eager` is it folded.
    """

    def __init__(self, setting: Setting, network: nn.Module, eager: Run) -> None:
        self.setting, self.network, self.eager = setting, network, eager
        self.made: dict[tuple[str, Shape], tuple[Run, str]] = {}  # engine and (C, H, W) to what runs, and its precision
        self.chosen: dict[Shape, str] = {}  # of batches that were measured, or that a named engine was proven on
        self.found: dict[Shape, str] = {}  # what was found for them, in words
        self.lock = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        # Between the two looks another thread may give back the engine; that of a known shape waits for nobody's lock.
        found = self.made.get((self.chosen.get(shape, ""), shape[1:]))
        if found is None:
            with self.lock:  # a second thread waits for what the first one makes
                engine = self.chosen.get(shape) or self._engine_for(shape)
                found = self.made[engine, shape[1:]]
        return found[0](images)

    def prepare(self, shape: Shape) -> None:
        """Choose and make the engine for batches of this shape, so that the first of them does not wait."""
        with self.lock:
            self._choose(shape)

    def precision(self, shape: Shape) -> tuple[str, str]:
        """The engine for a shape that was prepared, and the precision that it computes in."""
        engine = self.chosen[shape]
        return engine, self.made[engine, shape[1:]][1]

    def _engine_for(self, shape: Shape) -> str:
        """As the nearest batch of the same images has it; measured where there is none."""
        alike = [other for other in self.chosen if other[1:] == shape[1:]]
        if not alike:
            return self._choose(shape)
        engine = self.chosen[min(alike, key=lambda other: abs(math.log(other[0] / shape[0])))]
        if engine == "inductor" and shape[0] > max(other[0] for other in alike):  # which it has to compile for
            with torch.inference_mode(False), torch.no_grad():
                self._make(engine, shape)
        self.chosen[shape] = engine
        return engine

    def _choose(self, shape: Shape) -> str:
        engines = self.setting.engines
        with torch.inference_mode(False), torch.no_grad():
            self._forget_sizes(shape)
            if len(engines) == 1:
                self._make(engines[0], shape)
                self.chosen[shape] = engines[0]
                return engines[0]
            key = _key(self.setting, self.network, shape)
            known = _recalled(key)
            best = self._remembered(known, shape) if known else None
            self.chosen[shape] = best = best or self._measured(shape, key)
            self._drop()
        return best

    def _remembered(self, known: Mapping[str, float], shape: Shape) -> str | None:
        """The engine that was the fastest before, if it still answers rightly."""
        best = _fastest(known)
        try:
            self._make(best, shape)
        except ResiduumError:
            return None
        self.found[shape] = f"{_in_words(known, shape, {})}, as measured before"
        return best

    def _measured(self, shape: Shape, key: dict[str, Any]) -> str:
        """The fastest of the engines that answer rightly, remembered for other processes."""
        failed: dict[str, str] = {}
        for engine in self.setting.engines:
            try:
                self._make(engine, shape)
            except ResiduumError as error:
                failed[engine] = str(error)
        runs = {engine: self.made[engine, shape[1:]][0] for engine in self.setting.engines if engine not in failed}
        (images,) = made_up(shape, self.setting.device, [shape[0]])
        known = {
            engine: shape[0] / seconds for engine, seconds in seconds_of(runs, images, self.setting.device).items()
        }
        self.found[shape] = _in_words(known, shape, failed)
        if not failed:  # an engine that failed is tried again
            _remember(key, known)
        return _fastest(known)

    def _make(self, engine: str, shape: Shape) -> None:
        """Make an engine for images of (C, H, W) and prove it; raises `ExportError` and what its library lacks."""
        place = engine, shape[1:]
        if place in self.made and engine not in TORCHS:
            return
        setting = self.setting
        if place not in self.made:
            run, precision = self._built(engine, shape[1], (shape[2], shape[3]))
        else:
            run, precision = self.made[place]
        most = shape[0] if engine in TORCHS else min(shape[0], MOST_PROVEN)
        counts = sorted({most, min(3, most) if engine == "inductor" else 3, 1}, reverse=True)
        worst = difference(run, self.network, made_up(shape, setting.device, counts))
        if not worst <= TOLERANCE[precision]:
            raise ExportError(
                f"engine {engine!r} gives other answers than the network: {worst:.2g} of the largest apart, more than "
                f"{TOLERANCE[precision]:g} in {precision}; take another engine"
            )
        self.made[place] = run, precision

    def _built(self, engine: str, channels: int, size: tuple[int, int]) -> tuple[Run, str]:
        setting = self.setting
        if engine == "eager":
            return self.eager, setting.precision
        if engine in TORCHS:
            program = program_of(setting.fold(setting.precision), channels, size)
            if engine == "aoti":
                return aoti_run(program, setting.package), setting.precision
            return CompiledRun(program), setting.precision
        program = program_of(setting.fold("fp32"), channels, size)
        if engine == "onnxruntime":
            return onnxruntime_run(program, setting.threads)
        return openvino_run(program, setting.threads, setting.asked)

    def _forget_sizes(self, shape: Shape) -> None:
        """Give back what was made for the images that came longest ago, where there are many sizes."""
        sizes = list(dict.fromkeys(other[1:] for other in self.chosen if other[1:] != shape[1:]))
        kept = sizes[max(0, len(sizes) - SIZES_KEPT + 1) :]
        self.chosen = {other: engine for other, engine in self.chosen.items() if other[1:] in (*kept, shape[1:])}
        self._drop()

    def _drop(self) -> None:
        """Give back the memory of engines that no shape uses."""
        used = {(engine, shape[1:]) for shape, engine in self.chosen.items()}
        self.made = {place: run for place, run in self.made.items() if place in used}


def seconds_of(runs: Mapping[str, Run], images: Tensor, device: torch.device) -> dict[str, float]:
    """Seconds that each takes for the batch: the least of several turns, one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            begin = now(device)
            run(images)  # and threads of the engine before come to rest
            once = max(now(device) - begin, 1e-6)
            passes = max(1, min(20, math.floor(TURN / once)))
            begin = now(device)
            for _ in range(passes):
                run(images)
            times[name].append((now(device) - begin) / passes)
    return {name: min(taken) for name, taken in times.items()}


def _fastest(known: Mapping[str, float]) -> str:
    best = max(known, key=lambda name: known[name])
    return "eager" if known[best] < GAIN * known.get("eager", 0.0) else best


def _in_words(known: Mapping[str, float], shape: Shape, failed: Mapping[str, str]) -> str:
    best = _fastest(known)
    others = [f"{name} {known[name]:.3g}" for name in sorted(known, key=lambda name: -known[name]) if name != best]
    size = "x".join(map(str, shape))
    said = f"{best} gives {known[best]:.3g} images/s at {size}" + (f", {', '.join(others)}" if others else "")
    return said + "".join(f"; {why}" for why in failed.values())


# -- what is remembered ------------------------------------------------------------------------------------------------


def _key(setting: Setting, network: Any, shape: Shape) -> dict[str, Any]:
    """All that the speeds depend on, weights apart."""
    libraries = ["torch", *(library for engine in setting.engines for library in LIBRARIES.get(engine, ()))]
    return {
        "network": hashlib.sha256(f"{network.config.to_dict()}{network}".encode()).hexdigest(),
        "shape": list(shape),
        "precision": [setting.asked, setting.precision],
        "engines": list(setting.engines),
        "processor": [processor(), torch.backends.cpu.get_cpu_capability(), str(setting.device)],
        "threads": setting.threads,
        "libraries": {library: version_of(library) or "" for library in libraries},
        "residuum": residuum.__version__,
    }


def _place(key: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "engines" / f"{name}.json"


def _recalled(key: dict[str, Any]) -> dict[str, float] | None:
    """Images/s of each engine as measured before, or None where that is not known or no longer readable."""
    try:
        note = json.loads(_place(key).read_bytes()[: 2**16])
        known = note["images_per_second"]
        right = note["key"] == key and known and set(known) <= set(key["engines"])
        right = right and all(isinstance(speed, float) and 0 < speed < math.inf for speed in known.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(known) if right else None


def _remember(key: dict[str, Any], known: Mapping[str, float]) -> None:
    """Write a measurement down; a folder that cannot be written only means that it is made again."""
    path = _place(key)
    note = {"key": key, "images_per_second": dict(known), "written": time.strftime("%Y-%m-%d")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(note, indent=1), ExportError)
    except (OSError, ExportError):
        pass
