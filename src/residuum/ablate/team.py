"""A cell that several processes train together: they are started by torchrun, and what became of them is read back."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from residuum import errors
from residuum.ablate.cell import Job, Trained, begin_or_go_on
from residuum.ablate.locks import locked
from residuum.errors import ResiduumError, RunError, shortened
from residuum.train.execution import rank
from residuum.train.processes import Stop, has_ended

_JOB, _FOUND, _FAILED = "job.json", "found.json", "failed-{}.json"
_TICK = 0.2


def by_torchrun(job: Job) -> Trained:
    """Train a cell with `job.processes` processes; raises what one of them raised, or `RunError`.

    A signal to end that comes to this process goes on to them: they save at their next step.
    """
    with tempfile.TemporaryDirectory(prefix="residuum-team-") as folder:
        place, stop, told = Path(folder), Stop(), False
        (place / _JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")
        line = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
        line += [f"--nproc-per-node={job.processes}", "-m", "residuum.ablate.team", folder, str(os.getpid())]
        with stop.listening():
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONSAFEPATH": "1"})
            while process.poll() is None:
                if stop.signal is not None and not told:
                    process.terminate()
                    told = True
                time.sleep(_TICK)
        found, failed = place / _FOUND, sorted(place.glob(_FAILED.format("*")))
        if found.is_file():
            return Trained(**json.loads(found.read_text(encoding="utf-8")))
        if failed:
            told_first = min((json.loads(path.read_text(encoding="utf-8")) for path in failed), key=_guilt)
            if told_first["text"] is None:
                raise RuntimeError(told_first["trace"])
            kind = getattr(errors, told_first["kind"])
            raise kind(told_first["text"])
        if told:
            return Trained(stopped=True)
        raise RunError(f"the {job.processes} processes that trained it ended with code {process.returncode}")


def _guilt(told: dict[str, str | None]) -> tuple[bool, bool]:
    """First what is no error of the package, then what is more than that another process is gone."""
    return told["text"] is not None, "did not answer" in (told["text"] or "")


def main() -> None:
    """One of the processes. It saves and ends when the worker that started them has ended."""
    place, worker = Path(sys.argv[1]), int(sys.argv[2])
    job = Job(**json.loads((place / _JOB).read_text(encoding="utf-8")))
    threading.Thread(target=_watch, args=(worker,), daemon=True).start()
    folder, own = Path(job.folder), rank()
    lock = Path(job.lock).with_name(Path(job.lock).name + ".team")
    try:
        with locked(lock, folder.name) if own == 0 else contextlib.nullcontext():
            trained = begin_or_go_on(job)
        if own == 0:
            (place / _FOUND).write_text(json.dumps(asdict(trained)), encoding="utf-8")
    except Exception as error:
        text = str(error) if isinstance(error, ResiduumError) else None
        told = {"kind": type(error).__name__, "text": text, "trace": shortened(traceback.format_exc(), 10_000)}
        with contextlib.suppress(OSError):
            (place / _FAILED.format(own)).write_text(json.dumps(told), encoding="utf-8")
        sys.exit(1)


def _watch(worker: int) -> None:
    while not has_ended(worker):
        time.sleep(_TICK)
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
