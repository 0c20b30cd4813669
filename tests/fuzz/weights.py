"""Broken and hostile weights files, made from a seed, through everything that reads weights.

    python -m tests.fuzz.weights --count 10000 --seed 7
    python -m tests.fuzz.weights --only 123 --seed 7      one file, with the traceback where there is one

Each file goes through `load`, `load_weights` strict and not, `inspect` and `convert` in a process of its own, which
measures memory and time, of the processor, so that other jobs do not count. An operation ends right, or with one
sentence; whatever else it does counts as a fault.
"""

import argparse
import collections
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fuzz.broken_weights import Case, State, bases, make

LONGEST_S, LARGEST_GROWTH, LONGEST_MESSAGE = 5.0, 10**9, 500
FINE = ("right", "refused")


# -- the process that reads --------------------------------------------------------------------------------------------


def peak() -> int:
    """The most bytes that this process has held at once, since `forget_peak` where the system can forget."""
    try:
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def outcome(run: Callable[[], Any], *, show: bool) -> tuple[str, str]:
    """How an operation ended, and what it said."""
    from residuum import ResiduumError

    before, start = forget_peak(), time.process_time()
    try:
        run()
        found = ("right", "")
    except ResiduumError as error:
        text = str(error)
        found = (
            ("refused", text) if text and len(text) <= LONGEST_MESSAGE and text.isprintable() else ("badly said", text)
        )
    except AssertionError as error:
        found = ("wrong", str(error))
    except BaseException as error:
        found = ("traceback", f"{type(error).__name__}: {str(error)[:200]}")
        if show:
            traceback.print_exc()
    took, grown = time.process_time() - start, peak() - before
    if took > LONGEST_S:
        return "slow", f"{took:.1f} s ({found[0]})"
    if grown > LARGEST_GROWTH:
        return "large", f"{grown / 1e9:.1f} GB ({found[0]})"
    return found


def worker(seed: int, start: int, stop: int, show: bool) -> None:
    """Go through the files of some numbers; a line of JSON for each, written before and after."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from residuum import create, load, load_weights
    from residuum.weights.converting import convert, inspect

    based = bases()
    networks = {layout: create(config) for layout, (config, _) in based.items()}
    fresh = {layout: {k: v.clone() for k, v in net.state_dict().items()} for layout, net in networks.items()}
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a file's code would print does not look like an answer
    with TemporaryDirectory() as kept:
        for index in range(start, stop):
            folder = Path(kept) / str(index)
            folder.mkdir()
            print(json.dumps({"index": index, "how": "while it was made"}), file=output, flush=True)
            case, layout = make(seed, index, folder, based)
            print(json.dumps({"index": index, "how": case.how}), file=output, flush=True)
            net, before = networks[layout], fresh[layout]

            def whole(case: Case = case, layout: str = layout) -> None:
                model = load(case.path)
                assert not model.training
                if case.same:
                    assert _equal(model.state_dict(), based[layout], layout), "another network came out"

            def into(
                strict: bool, case: Case = case, layout: str = layout, net: Any = net, before: Any = before
            ) -> None:
                net.load_state_dict(before)
                try:
                    load_weights(net, case.path, strict=strict)
                except Exception:
                    same = all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
                    assert same, "a refused load changed the network"
                    raise
                if case.same:
                    assert _equal(net.state_dict(), based[layout], layout), "other weights went in"
                assert all(v.isfinite().all() for v in net.state_dict().values()), "what is no number went in"

            def converted(case: Case = case, folder: Path = folder) -> None:
                target = folder / "out.safetensors"
                convert(case.path, target, "residuum")
                load(target)

            for name, run in (
                ("load", whole), ("strict", lambda: into(True)), ("lenient", lambda: into(False)),
                ("inspect", lambda case=case: inspect(case.path)), ("convert", converted),
            ):  # fmt: skip
                kind, said = outcome(run, show=show)
                if case.same and kind == "refused":
                    kind = "wrongly refused"
                line = {"index": index, "operation": name, "outcome": kind, "said": said}
                print(json.dumps(line), file=output, flush=True)
            for path in folder.iterdir():
                path.unlink()


def _equal(found: Any, base: tuple[Any, State], layout: str) -> bool:
    """Whether a network holds the weights that a layout's were made from."""
    from residuum.weights.layouts import LAYOUTS, to_theirs

    for name, value in found.items():
        theirs = base[1].get(to_theirs(name, LAYOUTS[layout]))
        if theirs is not None and not (theirs.reshape(value.shape) == value).all():
            return False
    return True


# -- the process that watches ------------------------------------------------------------------------------------------


def fuzz(count: int, seed: int, start: int = 0, *, show: bool = False) -> tuple[collections.Counter[str], list[str]]:
    """Outcomes of all operations on files `start` to `start + count`, counted, and a line for each fault."""
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    index, stop = start, start + count
    while index < stop:
        line = [sys.executable, "-m", "tests.fuzz.weights", "--worker", "--seed", str(seed)]
        line += ["--start", str(index), "--count", str(stop - index), *(["--show"] if show else [])]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=None if show else subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        how, last = "", -1
        timer = _watch(process)
        for text in process.stdout:
            timer.cancel()
            timer = _watch(process)
            said = json.loads(text)
            last = said["index"]
            if "how" in said:
                how = said["how"]
                continue
            counts[said["outcome"]] += 1
            if said["outcome"] not in FINE:
                faults.append(f"{last} {said['operation']}: {said['outcome']}: {said['said'][:200]!r} ({how})")
                print(faults[-1], flush=True)
        timer.cancel()
        if process.wait() == 0:
            break
        if last < 0:
            raise RuntimeError("the process that reads does not start: run it with --worker")
        counts["dead"] += 1
        faults.append(f"{last}: the process ended with {process.returncode} ({how})")
        print(faults[-1], flush=True)
        index = last + 1
    return counts, faults


def _watch(process: subprocess.Popen[str]) -> threading.Timer:
    timer = threading.Timer(60, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.seed, asked.start, asked.start + asked.count, asked.show)
        return
    start, count = (asked.start, asked.count) if asked.only is None else (asked.only, 1)
    began = time.perf_counter()
    counts, faults = fuzz(count, asked.seed, start, show=asked.only is not None)
    total = sum(counts.values())
    took = f"{total} operations, {time.perf_counter() - began:.0f} s"
    print(f"seed {asked.seed}, files {start} to {start + count - 1}, {took}:")
    print(", ".join(f"{kind} {number}" for kind, number in sorted(counts.items())))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
