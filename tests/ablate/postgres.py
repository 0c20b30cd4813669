"""A PostgreSQL server of a test's own, in a folder of its own, as long as the block lasts."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest


def binaries():
    """The folder of the server's programs; skips the test where there is none."""
    found = [Path(program).resolve().parent for name in ("initdb",) if (program := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")


def user():
    """Who may run the server: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            pass
    pytest.skip("PostgreSQL does not run as root, and there is no user for it")


@contextmanager
def postgres():
    """The address of a server's database."""
    programs, who = binaries(), user()
    folder = Path(tempfile.mkdtemp(prefix="residuum-postgres-"))
    how = {} if who is None else {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    env = {**os.environ, "LC_ALL": "C", "HOME": str(folder)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*words):
        done = subprocess.run(
            list(map(str, words)), check=False, cwd=folder, env=env, capture_output=True, text=True, **how
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        if who is not None:
            os.chown(folder, who.pw_uid, who.pw_gid)
        data = folder / "data"
        call(programs / "initdb", "-D", data, "-A", "trust", "-U", "residuum", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        call(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "-t", 60, "start")
        try:
            yield f"postgresql://residuum@127.0.0.1:{port}/postgres"
        finally:
            call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
