"""
The main job on real input, while things die: shared by the system test (a cut) and `make soak` (all of it).

Kills happen when the work has reached a certain point, never after a sleep, so that
they always hit a process in the middle of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests import flights
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres
from tests.system.harness import Process, Site

QUEUE = "flights"

MAX_ATTEMPTS_ONE = {"QUEUE_DEFAULTS__RETRY__MAX_ATTEMPTS": "1"}
"""With a single attempt allowed, one that an outage or a crash burns is a dead letter."""

SHORT_LEASE = {"BROKER__SQLITE__LEASE": "2s"}
"""What a killed consumer had in hand comes back after this long."""


@dataclass
class Outcome:
    """What the run did and what it left behind."""

    sent: int
    consumer_kills: int = 0
    gateway_kills: int = 0
    outage_seconds: float = 0.0
    seconds: float = 0.0
    verify: dict[str, Any] = field(default_factory=dict)
    verify_exit: int = -1
    bodies: Counter[str] = field(default_factory=Counter)
    """SHA-256 of what is in the database, by our own reading: `verify` is not asked to judge itself."""
    expected: Counter[str] = field(default_factory=Counter)
    dead_letters: int = -1
    most_attempts: int = -1


@dataclass
class _Event:
    """Something to do once a figure has reached `at`."""

    at: int
    do: Callable[[], None]


def fractions(count: int, parts: Sequence[float]) -> list[int]:
    return [int(count * part) for part in parts]


def run(
    site: Site,
    database: Postgres | MariaDB,
    *,
    count: int,
    consumer_kills: int = 5,
    gateway_kills: int = 0,
    outage: float = 3.0,
    within: float = 300.0,
) -> Outcome:
    """Send `count` flights, kill and stop what the arguments say, and take stock when all is quiet."""
    began = time.monotonic()
    site.settings |= {**MAX_ATTEMPTS_ONE, **SHORT_LEASE}
    source, sent = site.folder / "flights.ndjson", site.folder / "sent.txt"
    outcome = Outcome(flights.write_ndjson(source, count))
    with source.open("rb") as lines:
        outcome.expected = Counter(hashlib.sha256(line.rstrip(b"\n")).hexdigest() for line in lines)
    running: dict[str, Process] = {"gateway": site.gateway(), "consumer": site.consumer(QUEUE)}
    sender = site.start(
        "send", QUEUE, "--ndjson", str(source), "--record", str(sent), "--url", site.url, log="send"
    )

    def kill_consumer() -> None:
        running["consumer"].kill()
        outcome.consumer_kills += 1
        running["consumer"] = site.consumer(QUEUE)

    def kill_gateway() -> None:
        assert sender.running, "the sender is done; the gateway must die while it is at work"
        running["gateway"].kill()
        outcome.gateway_kills += 1
        running["gateway"] = site.gateway()

    def stop_database() -> None:
        database.stop("fast")
        # The length of the outage is what is tested, so here time itself is waited for.
        time.sleep(outage)
        database.start()
        outcome.outage_seconds += outage

    stored = [
        *(_Event(at, kill_consumer) for at in fractions(count, [0.05, 0.2, 0.35, 0.6, 0.8][:consumer_kills])),
        *([_Event(int(count * 0.45), stop_database)] if outage else []),
    ]
    stored.sort(key=lambda event: event.at)
    accepted = [
        _Event(at, kill_gateway) for at in fractions(count, [0.15, 0.4, 0.65, 0.75, 0.85][:gateway_kills])
    ]

    def step() -> bool:
        for events, figure in ((stored, site.stored), (accepted, lambda: _lines(sent))):
            if events and figure() >= events[0].at:
                events.pop(0).do()
        return not stored and not accepted and not sender.running

    deadline = time.monotonic() + within
    while not step():
        code = None if sender.running else sender.wait()
        assert code in (None, 0), f"`forebay send` ended with {code}:\n{sender.tail()}"
        assert running["gateway"].running, running["gateway"].tail()
        assert running["consumer"].running, running["consumer"].tail()
        assert time.monotonic() < deadline, f"{site.stored()} of {count} are stored after {within:g} s"
        time.sleep(0.02)
    assert sender.wait() == 0, sender.tail()

    running["consumer"].until(lambda: site.stored() >= count, within=120, what="the last row")
    _take_stock(site, outcome, str(sent))
    assert running["consumer"].stop() == 0, running["consumer"].tail()
    assert running["gateway"].stop() == 0, running["gateway"].tail()
    outcome.seconds = time.monotonic() - began
    return outcome


def _take_stock(site: Site, outcome: Outcome, sent: str) -> None:
    done = site.run("verify", sent, "--wait", "60s", "--json", timeout=600)
    outcome.verify_exit = done.returncode
    assert done.stdout, done.stderr
    outcome.verify = json.loads(done.stdout)
    digest = "sha2(body, 256)" if site.database_url.startswith("mysql:") else "encode(sha256(body), 'hex')"
    outcome.bodies = Counter(row[0] for row in site.sql(f"select {digest} from messages"))
    outcome.dead_letters = site.sql("select count(*) from dead_letters")[0][0]
    outcome.most_attempts = site.sql("select max(attempts) from messages")[0][0]


def _lines(path: Any) -> int:
    try:
        with open(path, "rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def check(outcome: Outcome) -> None:
    """Nothing lost, duplicated or altered, and nothing died: by our own count first, then by `verify`."""
    missing, extra = outcome.expected - outcome.bodies, outcome.bodies - outcome.expected
    assert not missing, f"{missing.total()} flights are lost"
    assert not extra, f"{extra.total()} rows are duplicates or were never sent"
    assert outcome.dead_letters == 0
    assert outcome.most_attempts == 1
    assert outcome.verify_exit == 0, outcome.verify
    for name in ("lost", "duplicated", "altered", "dead"):
        assert outcome.verify[name] == 0, outcome.verify
