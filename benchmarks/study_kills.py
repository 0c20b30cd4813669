"""A study whose processes are killed again and again ends as one that is left alone.

    python -m benchmarks.study_kills --kills 20

Runs a study of 24 cells twice: once undisturbed, and once with SIGKILL for the command and its workers, all of them or
some, after a random time, followed by the same line again. Prints what differs in what was found, but for times.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

STUDY = """
seeds = {seeds}
[base]
epochs = {epochs}
batch_size = 256
[base.model]
width = 0.25
stochastic_depth = 0.2
[factor.SE]
on = {{ "model.attention" = "se" }}
off = {{ "model.attention" = "none" }}
[factor.D]
on = {{ "model.downsample" = "avg" }}
off = {{ "model.downsample" = "pad" }}
[factor.smoothing]
on = {{ label_smoothing = 0.1 }}
off = {{ label_smoothing = 0.0 }}
[run]
workers = 2
threads = 1
retries = 100
"""
TIMES = ("seconds", "images_per_second")


def begin(study: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, as a user starts it."""
    line = [sys.executable, "-m", "residuum", "ablate", str(study), "--out", str(out)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL)


def found(out: Path) -> dict[str, object]:
    """What each cell has come to, but for times: its status, the digest of its weights, right images, its rows."""
    cells: dict[str, object] = {}
    for path in sorted(out.glob("cells/*/cell.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = path.with_name("metrics.jsonl")
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
        kept = [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)} for line in lines]
        cells[path.parent.name] = [record["status"], record["weights"], record["correct"], kept]
    return cells


def begun(out: Path) -> dict[str, str]:
    """When each cell that has saved a state was begun from nothing."""
    records = ((path, json.loads(path.read_text(encoding="utf-8"))) for path in out.glob("cells/*/cell.json"))
    return {path.parent.name: record["begun"] for path, record in records if record["begun"]}


def kill_some(process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """SIGKILL for the parent, for its workers, or for all."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    chosen = chance.choice([everyone, everyone[:1], everyone[1:]])
    for one in chosen:
        with contextlib.suppress(psutil.Error):
            one.kill()


def disturbed(study: Path, out: Path, kills: int, longest: float, chance: random.Random) -> list[str]:
    """Run a study to its end through so many kills; cells that were begun from nothing again after a save."""
    twice = []
    for _ in range(kills):
        process = begin(study, out)
        until = time.monotonic() + 60
        while not (out / "worker-1.log").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, longest))
        before = begun(out)
        if process.poll() is None:
            kill_some(process, chance)
        process.wait()
        (out / "worker-1.log").unlink(missing_ok=True)
        after = begun(out)
        twice += [name for name, when in before.items() if after.get(name) != when]
    before = begun(out)
    code = begin(study, out).wait()
    if code != 0:
        code = begin(study, out).wait()  # of workers alone that were killed, the cells count as failed once
    assert code == 0, f"the study ended with {code}"
    after = begun(out)
    return twice + [name for name, when in before.items() if after.get(name) != when]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds that the command runs before a kill")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        study = root / "study.toml"
        study.write_text(STUDY.format(seeds=args.seeds, epochs=args.epochs), encoding="utf-8")
        assert begin(study, root / "alone").wait() == 0
        twice = disturbed(study, root / "killed", args.kills, args.longest, random.Random(0))
        one, two = found(root / "alone"), found(root / "killed")
        unlike = [name for name in one if one[name] != two.get(name)]
        print(f"{len(one)} cells, {args.kills} kills: {len(unlike)} differ, {len(twice)} begun again after a save")
        sys.exit(bool(unlike or twice or one.keys() != two.keys()))


if __name__ == "__main__":
    main()
