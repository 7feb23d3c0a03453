"""Good requests at a steady rate beside a crowd of clients that send one byte a second."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.system.harness import Site
from tests.system.hostile import resident
from tests.system.load import CONNECTIONS, Load
from tests.system.slow_clients import SlowClients


@dataclass(frozen=True)
class Outcome:
    good: int
    """Messages answered 202."""
    rate: float
    """Of these, per second, while the slow ones were there."""
    not_at_once: int
    """Good requests that were answered otherwise first, or not at all, and were sent again."""
    statuses: dict[int, int]
    """How they were answered first; 0: not at all."""
    slowest: float
    """Seconds for the slowest answer to a good request."""
    slow: dict[str, Any]
    memory: int
    """Bytes that the gateway held at the end, and before."""
    memory_before: int


def run(site: Site, *, count: int, rate: float, seconds: float, connections: int = CONNECTIONS) -> Outcome:
    """`count` slow clients, and `rate` good requests a second over so many connections, for so long."""
    site.queues = "orders"
    gateway = site.gateway()
    load = Load(
        [site.port], "orders", site.folder / "sent.txt", rate=rate, catch_up=seconds, connections=connections
    )
    before = resident(gateway.pid)
    with SlowClients(site.port, count) as slow:
        load.start()
        began = time.monotonic()
        accepted = 0
        while time.monotonic() - began < seconds:
            time.sleep(0.2)
            load.check()
            accepted = load.accepted
        lasted = time.monotonic() - began
        load.stop()
        memory = resident(gateway.pid)
    assert gateway.running
    assert gateway.stop() == 0
    return Outcome(
        good=load.accepted,
        rate=accepted / lasted,
        not_at_once=load.retries,
        statuses=dict(Counter(status for _, status in load.others)),
        slowest=load.slowest,
        slow=slow.report,
        memory=memory,
        memory_before=before,
    )
