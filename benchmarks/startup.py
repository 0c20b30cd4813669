"""Seconds that `import residuum` and `residuum --help` take: medians of ten, each in a process of its own.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import residuum'": [sys.executable, "-c", "import residuum"],
    "residuum --help": [str(Path(sys.executable).parent / "residuum"), "--help"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    for name, command in COMMANDS.items():
        seconds(command)  # fills the caches of the file system
        print(f"{name:30} {statistics.median(seconds(command) for _ in range(10)):.3f} s")


if __name__ == "__main__":
    main()
