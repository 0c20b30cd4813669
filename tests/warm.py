"""Processes that begin with torch loaded: forked from a server, where the product starts an interpreter for each.

An interpreter needs up to seven seconds of processor to load torch, its compiler and the runtimes of exported files,
which is more than most tests ask of it then. Tests that start the command itself start interpreters, and so does it.
"""

import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",  # which every optimizer loads
        "torchvision.transforms.v2",
        "residuum.train.session",
        "residuum.evaluation.runs",
        "residuum.ablate.worker",
        "residuum.export.proof",
        "onnx",
        "onnxruntime",
        "openvino",
        "timm",
        "tests.train.runs",
        "tests.ablate.trainers",
    ]
)


def start_as_usual():
    """Let this process start others as any does: from one of a server they would be of a server of its own."""
    multiprocessing.set_start_method(None, force=True)


def start_processes_warm(patch):
    """Let studies start their workers, and exports the process of their proof, from the server."""
    streams = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "TimeoutExpired")}
    patch.setattr("residuum.ablate.runner.subprocess", SimpleNamespace(Popen=Process, **streams))
    patch.setattr("residuum.export.proof.subprocess", SimpleNamespace(run=run, **streams))


def start_contenders_warm(patch):
    """Let the contenders of a comparison start from the server, where nobody looks at what was measured."""
    patch.setattr("residuum.bench.measure.multiprocessing", SimpleNamespace(get_context=lambda kind: CONTEXT))


def run(line, *, capture_output, text, timeout, env, check, stdin):
    """`subprocess.run` as the proof of an export calls it."""
    assert capture_output and text and not check
    process = Process(line, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    out = process.stdout.read()
    process.wait()
    timer.cancel()
    return subprocess.CompletedProcess(line, process.returncode, out, "")


class Process:
    """`subprocess.Popen` of `python -P -m MODULE ARGUMENTS`: calls the module's `main` in a forked process."""

    def __init__(
        self, line, *, stdin, stdout, stderr, env, text, encoding="utf-8", start_new_session=False, pass_fds=()
    ):
        assert line[:3] == [sys.executable, "-P", "-m"] and text
        with contextlib.ExitStack() as theirs:
            null = theirs.enter_context(Path(os.devnull).open("r+b", buffering=0)).fileno()

            def pipe(mode):
                ends = os.pipe()
                there, here = ends if mode == "w" else reversed(ends)
                theirs.callback(os.close, there)
                return there, os.fdopen(here, mode, encoding=encoding)

            self.stdin = self.stdout = None
            given = null
            if stdin == subprocess.PIPE:
                given, self.stdin = pipe("w")
            told, self.stdout = pipe("r") if stdout == subprocess.PIPE else (stdout.fileno(), None)
            errors = told if stderr == subprocess.STDOUT else stderr.fileno()
            numbers = tuple(map(_Number, (given, told, errors, *pass_fds)))
            what = (line[3], line[4:], dict(env), str(Path.cwd()), start_new_session)
            self._process = CONTEXT.Process(target=_main, args=(*what, numbers))
            self._process.start()
        self._one_at_a_time, self.pid = threading.Lock(), self._process.pid

    @property
    def returncode(self):
        return self.poll()

    def poll(self):
        with self._one_at_a_time:  # two threads that ask at once would both read how it ended
            return self._process.exitcode

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def kill(self):
        self._process.kill()


class _Number:
    """The number of an open file, which in the new process is that of the same file there."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _there, (DupFd(self.number),)


def _there(file):
    return file.detach()


def _main(module, arguments, environment, folder, own_session, numbers):
    start_as_usual()
    if own_session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    for stream, number in enumerate(numbers[:3]):
        os.dup2(number, stream)
        os.close(number)
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()
