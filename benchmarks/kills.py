"""Kill processes of a run at random, again and again, and compare its weights with those of an undisturbed run.

python benchmarks/kills.py --kills 20
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

LINE = ("--batch-size", "64", "--norm-batch", "32", "--model.width", "0.25", "--precision", "fp32", "--save-every", "1")


def started(out: Path, epochs: int, restarts: int, processes: int) -> subprocess.Popen:
    """The run under torchrun, as one starts it that may be started again."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launch += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "--standalone"]
    command = [
        *launch,
        "-m",
        "residuum",
        "train",
        *LINE,
        "--epochs",
        str(epochs),
        "--out",
        str(out),
        "--resume",
        "auto",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out.parent.mkdir(exist_ok=True)
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def workers(launcher: int) -> list[psutil.Process]:
    """The processes that train."""
    try:
        found = psutil.Process(launcher).children()
        return [p for p in found if "residuum" in p.cmdline() and p.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


def disturbed(out: Path, epochs: int, kills: int, processes: int, draw: random.Random, longest: float) -> int:
    """Train to the end, killing a random process up to `kills` times; how many were killed."""
    run, done = started(out, epochs, kills + 2, processes), 0
    while run.poll() is None:
        until, state = time.monotonic() + draw.uniform(0.5, longest), out / "state.pt"
        before = state.stat().st_mtime_ns if state.exists() else None
        while run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        while run.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.02)  # without a state between two kills nothing would ever be done
        there = workers(run.pid)
        if done < kills and len(there) == processes:
            os.kill(draw.choice(there).pid, signal.SIGKILL)
            done += 1
    if run.returncode:
        raise SystemExit(f"the run ended with {run.returncode}:\n{out.with_suffix('.log').read_text()[-2000:]}")
    return done


def same(one: Path, two: Path) -> bool:
    """Whether two runs ended with the very same state of network, optimizer and average."""
    a, b = (torch.load(path / "state.pt", weights_only=True) for path in (one, two))

    def equal(x: object, y: object) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return all(equal(a[name], b[name]) for name in ("network", "optimizer", "average", "averaged"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds of training between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain, killed = Path(folder) / "plain", Path(folder) / "killed"
        disturbed(plain, given.epochs, 0, given.processes, random.Random(given.seed), given.longest)
        draw = random.Random(given.seed)
        done = disturbed(killed, given.epochs, given.kills, given.processes, draw, given.longest)
        equal = same(plain, killed)
        print(f"{done} processes killed; the final states are {'equal to the bit' if equal else 'NOT EQUAL'}")
    sys.exit(0 if equal and done == given.kills else 1)


if __name__ == "__main__":
    main()
