"""Several processes in one test, as torchrun starts them: forked from a server that has torch loaded."""

import os
import socket
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from tests.warm import CONTEXT, start_as_usual


def _work(pipe, place, function, args):
    start_as_usual()
    os.environ.update(place)
    torch.set_num_threads(1)
    try:
        result = function(*args)
    except SystemExit as ended:
        result = ended
    except BaseException as error:
        traceback.print_exc()
        result = error
    pipe.send(result)
    pipe.close()


@contextmanager
def started(world, function, *args):
    """Processes that do `function(*args)`, with the pipes that their results come through."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(world):
        mine, theirs = CONTEXT.Pipe(duplex=False)
        place = {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        own = [arg[rank] if isinstance(arg, PerRank) else arg for arg in args]
        process = CONTEXT.Process(target=_work, args=(theirs, place, function, own), daemon=False)
        process.start()
        theirs.close()
        running.append((process, mine))
    try:
        yield running
    finally:
        for process, _ in running:
            process.kill()
            process.join()


class PerRank(list):
    """An argument that each process has its own of."""


def in_processes(world, function, *args, timeout=60):
    """What `function(*args)` gives or raises in each process; None of one that died."""
    with started(world, function, *args) as running:
        return [_result(pipe, timeout) for _, pipe in running]


def _result(pipe, timeout):
    if not pipe.poll(timeout):
        raise AssertionError("a process hangs")
    try:
        return pipe.recv()
    except EOFError:
        return None


def state_of(run: Path):
    """The tensors of the state that a run saved last."""
    values = torch.load(Path(run) / "state.pt", weights_only=True)
    return values["network"]
