"""The server that the tests' processes are forked from."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from children import CHILDREN


def _tell_threads_of_the_server(told: Connection) -> None:
    told.send(len(list(Path(f"/proc/{os.getppid()}/task").iterdir())))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_it_has_one_thread() -> None:
    """A lock that another thread holds while the server forks would never be freed in the child."""
    heard, told = CHILDREN.Pipe(duplex=False)
    child = CHILDREN.Process(target=_tell_threads_of_the_server, args=(told,))
    child.start()
    assert heard.recv() == 1
    child.join()
