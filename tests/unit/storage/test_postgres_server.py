"""The tests' own PostgreSQL goes away with the process that started it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.servers.postgres import Postgres

pytestmark = pytest.mark.external

_START = """
import sys
from tests.servers.postgres import Postgres
server = Postgres(durable=False).start()
print(server.pid, server.folder, flush=True)
sys.stdin.read()
"""


def test_it_dies_with_a_killed_process(postgres: Postgres) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    pid, folder = starter.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()

    starter.kill()
    starter.wait(10)
    starter.stdin.close()
    starter.stdout.close()

    pause = threading.Event()
    for _ in range(1000):
        if not Path(f"/proc/{pid}").exists() and not Path(folder).exists():
            return
        pause.wait(0.02)
    raise AssertionError(f"server {pid} or its folder {folder} is still there")
