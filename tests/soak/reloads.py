"""nginx reloaded under 500 messages a second, by `deploy/nginx/reload` and by a bare SIGHUP."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import Target, record
from tests.servers.nginx import Nginx
from tests.system.harness import until
from tests.system.load import Load

RATE = 500.0
RELOADS = 20
BETWEEN = 0.3
"""Seconds of load between two reloads."""

ACCEPTED = '{"id": "01890a5d-ac96-774b-bcce-b302099a8057", "durability": "synced"}'
BACKEND = f"server {{ include site/listen.conf; keepalive_requests 1000000; return 202 '{ACCEPTED}'; }}\n"


def run() -> int:
    with Nginx([1], files={"servers/gateways.conf": BACKEND}) as backend:
        gently = _reloads(backend, Nginx.reload)
        bare = _reloads(backend, _bare)
    targets = [Target("failed with deploy/nginx/reload", gently["failed"], 0, at_most=True)]
    figures = {"reloads": RELOADS, "deploy/nginx/reload": gently, "bare SIGHUP": bare}
    return record("soak-reloads", figures, targets, {}, command="make soak ONLY=reloads")


def _reloads(backend: Nginx, reload: Callable[[Nginx], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="forebay-soak-") as folder, Nginx([backend.port]) as front:
        load = Load([front.port], "reloads", Path(folder) / "sent.txt", rate=RATE, once=True)
        load.start()
        # Every client has its connection by then.
        until(lambda: load.accepted > 2 * RATE, within=60, what="the load")
        began, before = time.monotonic(), load.accepted
        for _ in range(RELOADS):
            reload(front)
            time.sleep(BETWEEN)  # the load goes on
        rate = (load.accepted - before) / (time.monotonic() - began)
        failed = load.refused
        try:
            load.stop()
        except AssertionError as error:
            print(error)  # counted below
    return {"accepted": load.accepted, "failed": len(failed), "per second": round(rate, 1)}


def _bare(front: Nginx) -> None:
    old = front.workers()
    os.kill(front.pid, signal.SIGHUP)
    until(lambda: front.workers() and not front.workers() & old, within=20, what="new workers")


PARTS: dict[str, Callable[[], int]] = {"reloads": run}
