"""Threads read what comes next before it is asked for, and no more than that."""

import threading
import time

from residuum.data.ahead import read_ahead


def test_files_are_read_while_the_network_computes():
    reading, seen = threading.Event(), []

    def read(path):
        if path == "1":
            reading.set()
        return path

    for path, _ in read_ahead(["0", "1"], read, 2):
        seen.append(path)
        assert reading.wait(5), "the next file is not read before it is asked for"
    assert seen == ["0", "1"]


def test_leaving_early_reads_no_more():
    asked = []

    def read(path):
        asked.append(path)
        time.sleep(0.01)
        return path

    ahead = read_ahead(map(str, range(1000)), read, 50)
    next(ahead)
    ahead.close()
    time.sleep(0.1)
    count = len(asked)
    assert count < 60
    time.sleep(0.1)
    assert len(asked) == count
