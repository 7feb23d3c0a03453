"""
Application A calls application B through Forebay while B is down, slow, failing and back.

Shared by the system test (a cut) and `make soak ONLY=forward`. Two gateways and two consumers; A sends one
request after the other at a steady rate, to the gateways in turn, each until it is accepted, under one
key. A gateway is killed while B is down, both consumers while it is slow. B counts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.servers.postgres import free_port
from tests.servers.service import Service
from tests.system.harness import Process, Site, http

TARGET = "billing"

SETTINGS = {
    "FORWARD__BILLING__TIMEOUT": "5s",
    "QUEUES__BILLING__RETRY__BASE": "0.1s",
    "QUEUES__BILLING__RETRY__CAP": "0.5s",
    "QUEUES__BILLING__RETRY__MAX_ATTEMPTS": "1000",
    "QUEUES__BILLING__BREAKER__RECOVERY_TIME": "0.1s",
    "QUEUES__BILLING__BREAKER__MAX_RECOVERY_TIME": "1s",
    "BROKER__SQLITE__LEASE": "5s",
    "BROKER__KAFKA__SESSION_TIMEOUT": "6s",
    "BROKER__KAFKA__PARTITIONS": "3",
}


@dataclass(kw_only=True)
class Phases:
    """How long B is in each state, in seconds."""

    well: float
    down: float
    slow: float
    failing: float


@dataclass(kw_only=True)
class Outcome:
    """What the run did, and what B saw of it."""

    rate: float
    order: str
    sent: int = 0
    accepted: int = 0
    not_accepted_at_once: int = 0
    """Requests that A had to send again, because a gateway was killed."""
    slowest_acceptance: float = 0.0
    received: int = 0
    """Ids of which B had the effect."""
    lost: int = 0
    foreign: int = 0
    """Effects of what A never sent."""
    inversions: int = 0
    """Effects that came behind one that was accepted later."""
    repeats: int = 0
    """Requests with an id that B had handled already: its answer was lost with a process."""
    failures: int = 0
    """Answers 500 that B gave."""
    dead: int = 0
    drained_after: float = 0.0
    """Seconds from B's return until it had everything."""
    own_answer: str = ""
    """What A got at last, with B back: status and body."""


@dataclass
class Sender:
    """Application A."""

    ports: list[int]
    rate: float
    ids: list[str] = field(default_factory=list)
    """Of what was accepted, in that order."""
    again: int = 0
    slowest: float = 0.0
    sent: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _error: BaseException | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="application A", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the request in hand."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(120)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stop.is_set():
                self._send(self.sent)
                self.sent += 1
                due = max(due + 1 / self.rate, time.monotonic())
                self._stop.wait(due - time.monotonic())
        except BaseException as error:
            self._error = error

    def _send(self, n: int) -> None:
        began = time.monotonic()
        for attempt in range(1_000):
            port = self.ports[(n + attempt) % len(self.ports)]
            try:
                answer = http(
                    "POST", f"http://127.0.0.1:{port}/v1/forward/{TARGET}/items/{n}?by=a", b"%d" % n,
                    {"Idempotency-Key": f"item-{n}", "Content-Type": "text/plain"},
                )  # fmt: skip
            except OSError:
                answer = None  # nobody listens, or the gateway died over it
            if answer is not None and answer.status == 202:
                self.ids.append(answer.headers["forebay-message-id"])
                self.slowest = max(self.slowest, time.monotonic() - began)
                return
            assert answer is None or answer.status == 503, answer
            self.again += attempt == 0
            time.sleep(0.02)
        raise AssertionError(f"request {n} was not accepted")


def run(
    site: Site, service: Service, broker_url: str, *, rate: float, phases: Phases, order: str, within: float
) -> Outcome:
    """Send through all phases; return when B has everything, with what it counted."""
    site.queues = ""
    site.settings |= {
        **SETTINGS,
        "BROKER__URL": broker_url,
        "FORWARD__BILLING__URL": f"{service.url}/api",
        "FORWARD__BILLING__ORDER": order,
    }
    outcome = Outcome(rate=rate, order=order)
    ports = [site.port, free_port()]
    gateways = [site.gateway(port=port) for port in ports]
    consumers = [site.consumer(), site.consumer()]
    sender = Sender(ports, rate)
    sender.start()
    try:
        _spend(phases.well)
        service.stop()
        _spend(phases.down, kill=lambda: _replace(gateways, lambda: site.gateway(port=ports[0])))
        service.delay = 5 / rate
        service.start()
        # Both: one of them is waiting for an answer.
        _spend(phases.slow, kill=lambda: _replace(consumers, site.consumer, site.consumer))
        service.delay = 0.0
        service.failing = True
        _spend(phases.failing)
        consumers[1].until(lambda: service.failures >= 5, within=60, what="five answers 500")
        service.failing = False
        back = time.monotonic()
    finally:
        sender.stop()
    consumers[1].until(
        lambda: len(service.effects) >= len(sender.ids), within=within, what="B to have everything", every=0.1
    )
    outcome.drained_after = round(time.monotonic() - back, 2)
    _ask_for_an_answer(site, outcome)
    for process in (*gateways, *consumers):
        assert process.stop() == 0, process.tail()
    outcome.dead = int(site.sql("select count(*) from dead_letters")[0][0])
    _take_stock(service, sender, outcome)
    return outcome


def check(outcome: Outcome) -> None:
    assert (outcome.lost, outcome.foreign, outcome.dead) == (0, 0, 0), outcome
    assert outcome.received == outcome.accepted == outcome.sent, outcome
    if outcome.order == "all":
        assert outcome.inversions == 0, outcome
    # Consumers that are killed may have been asking; nothing else repeats a request that was answered.
    assert outcome.repeats <= 16, outcome
    assert outcome.failures > 0, outcome
    assert outcome.own_answer == "201 made of last", outcome


def _spend(seconds: float, *, kill: Callable[[], None] | None = None) -> None:
    """Let `seconds` pass, with a death in their middle."""
    ends = time.monotonic() + seconds
    time.sleep(seconds / 2)
    if kill is not None:
        kill()
    time.sleep(max(0.0, ends - time.monotonic()))


def _replace(processes: list[Process], *starts: Callable[[], Process]) -> None:
    """Kill as many as there are `starts`, and start others."""
    for n, start in enumerate(starts):
        processes[n].kill()
        processes[n] = start()


def _ask_for_an_answer(site: Site, outcome: Outcome) -> None:
    answer = http(
        "POST", f"{site.url}/v1/forward/{TARGET}/items/last", b"last",
        {"Prefer": "wait=30", "Content-Type": "text/plain"}, timeout=40,
    )  # fmt: skip
    outcome.own_answer = f"{answer.status} {answer.body.decode()}"
    kept = http("GET", f"{site.url}/v1/messages/{answer.headers['forebay-message-id']}/answer")
    assert (kept.status, kept.body) == (answer.status, answer.body), kept


def _take_stock(service: Service, sender: Sender, outcome: Outcome) -> None:
    effects = [id for id, body in service.effects.items() if body != b"last"]
    place = {id: n for n, id in enumerate(sender.ids)}
    outcome.sent, outcome.accepted = sender.sent, len(place)
    outcome.not_accepted_at_once = sender.again
    outcome.slowest_acceptance = round(sender.slowest, 3)
    outcome.received = len(place.keys() & set(effects))
    outcome.lost = len(place.keys() - set(effects))
    outcome.foreign = len(set(effects) - place.keys())
    places = [place[id] for id in effects if id in place]
    outcome.inversions = sum(b < a for a, b in itertools.pairwise(places))
    outcome.repeats = sum(count - 1 for count in service.asked.values())
    outcome.failures = service.failures
