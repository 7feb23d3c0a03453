"""
A database that is away under a steady load: for a system test (20 s) and `make soak` (10 minutes).

The server is stopped and started again; the load goes on before, while and after.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass

from tests.servers.postgres import Postgres
from tests.system.harness import Site, until
from tests.system.load import Load

QUEUE = "outage"
CALM = 5.0
"""Seconds of load before the database is stopped."""


@dataclass(kw_only=True)
class Outcome:
    seconds: float
    """The outage, from the stop to the first connection."""
    accepted: int
    lost: int
    duplicated: int
    dead: int
    most_attempts: int
    first_row: float
    """Seconds from the moment when the database took connections again to its first new row."""
    backlog: int
    """Messages accepted and not stored when it was back."""
    drained: float
    """Seconds until that was stored, while new ones came."""
    drain_rate: float
    """Messages stored per second in that time."""
    rate: float
    """Messages accepted per second, all in all."""
    longest_gap: float
    """The longest time without a 202."""
    verify_exit: int


class _Rows:
    """Looks at the table as often as it can, from a thread of its own."""

    def __init__(self, site: Site, before: int) -> None:
        self._site = site
        self._before = before
        self.first: float | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self.first is None:
            try:
                if self._site.stored() > self._before:
                    self.first = time.monotonic()
            except Exception:  # it is away
                time.sleep(0.02)


def run(site: Site, postgres: Postgres, *, rate: float, outage: float, consumers: int = 2) -> Outcome:
    """One outage of so many seconds under `rate` messages a second; the site knows broker and database."""
    site.queues = QUEUE
    gateway = site.gateway()
    workers = [site.start("consume", log=f"consume-{n}") for n in range(consumers)]
    record = site.folder / "sent.txt"
    load = Load([site.port], QUEUE, record, rate=rate)
    load.start()
    began = time.monotonic()
    gateway.until(lambda: load.accepted > rate * CALM, within=CALM * 4, what="the first messages")
    until(lambda: site.stored() > rate * CALM / 2, within=30, what="their rows")

    postgres.stop("immediate")
    stopped = time.monotonic()
    while time.monotonic() < stopped + outage:
        load.check()
        assert gateway.running, gateway.tail()
        assert all(w.running for w in workers), workers[0].tail()
        time.sleep(0.2)
    postgres.start()
    with postgres.connect() as connection:
        connection.execute("SELECT 1")
    back = time.monotonic()
    accepted = load.accepted
    before = site.stored()
    rows = _Rows(site, before)
    until(lambda: rows.first, within=60, what="the first row")
    # What was waiting is older than all that has come since, but for a few that overtake it.
    until(lambda: site.stored() >= accepted, within=600, what="the backlog", every=0.1)
    drained = time.monotonic()
    stored = site.stored()
    load.stop()
    ended = time.monotonic()

    verified = site.run("verify", str(record), "--wait", "60s", "--json", timeout=600)
    ledger = json.loads(verified.stdout)
    ((attempts,),) = site.sql("SELECT max(attempts) FROM messages")
    ((dead,),) = site.sql("SELECT count(*) FROM dead_letters")
    for worker in workers:
        assert worker.stop() == 0, worker.tail()
    assert gateway.stop() == 0
    assert rows.first is not None
    return Outcome(
        seconds=round(back - stopped, 1),
        accepted=load.accepted,
        lost=ledger["lost"],
        duplicated=ledger["duplicated"],
        dead=dead,
        most_attempts=attempts,
        first_row=round(rows.first - back, 2),
        backlog=accepted - before,
        drained=round(drained - back, 1),
        drain_rate=round((stored - before) / (drained - back)),
        rate=round(load.accepted / (ended - began)),
        longest_gap=round(load.longest_gap(began, ended), 2),
        verify_exit=verified.returncode,
    )
