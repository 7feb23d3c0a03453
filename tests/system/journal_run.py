"""
A broker that is away under a steady load, and a gateway that goes on without it.

For the system tests (seconds) and `make soak` (60 s at 2,000 messages a second). What the
gateway promises is judged from outside: by the answers that the clients got, by the order in
which the rows of each ordering key came, and by `forebay verify`.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.system.faults_run import Broker
from tests.system.flights_run import MAX_ATTEMPTS_ONE
from tests.system.harness import Process, Site, http, until
from tests.system.load import Load

QUEUE = "orders"
BUDGET = 1.0
CALM = 2.0
"""Seconds of load before the broker goes away."""


@dataclass(kw_only=True)
class Outcome:
    """What a run did, and what the clients saw of it."""

    accepted: int = 0
    promised: dict[str, int] = field(default_factory=dict)
    """How many 202s, by the durability that they named."""
    slowest_answer: float = 0.0
    refused_in_budget: int = 0
    """Answers other than 202 in the first budget interval after the broker went away."""
    refused_later: int = 0
    """The same for all the time after that; what a killed gateway never answered is not among these."""
    unanswered: int = 0
    """Requests without an answer."""
    stored_meanwhile: int = 0
    """Rows that came while the broker was away."""
    journaled: int = 0
    drained: float = 0.0
    """Seconds from the broker's return until the journal was empty."""
    turned_round: int = 0
    """Rows that came before an older one of the same ordering key."""
    rate: float = 0.0
    lost: int = -1
    duplicated: int = -1
    altered: int = -1
    dead: int = -1
    most_attempts: int = -1
    verify_exit: int = -1


@dataclass
class Run:
    """The processes of one run."""

    site: Site
    broker: Broker
    load: Load
    gateway: Process
    consumer: Process
    away_at: float = 0.0

    def kill_gateway(self) -> None:
        """SIGKILL, and at once another in its place, on the same journal."""
        self.gateway.kill()
        self.gateway = start_gateway(self.site)


def start_gateway(site: Site) -> Process:
    return site.gateway()


def paused(run: Run) -> None:
    for node in run.broker.nodes:
        node.pause()


def resumed(run: Run) -> None:
    for node in run.broker.nodes:
        node.resume()


def killed(run: Run) -> None:
    for node in run.broker.nodes:
        node.kill()


def started(run: Run) -> None:
    for node in run.broker.nodes:
        node.start()


def run(
    site: Site,
    broker: Broker,
    *,
    rate: float,
    gone: float,
    begin: Callable[[Run], None] = killed,
    end: Callable[[Run], None] = started,
    meanwhile: Sequence[Callable[[Run], None]] = (),
    journal: bool = True,
    fallback: str | None = None,
    drain_within: float = 120.0,
) -> Outcome:
    """Have the broker away for `gone` seconds; `meanwhile` is done one after the other in that time."""
    site.queues = QUEUE
    site.settings |= {**MAX_ATTEMPTS_ONE, "BROKER__URL": broker.url, "GATEWAY__BROKER_BUDGET": f"{BUDGET}"}
    if journal:
        site.settings["GATEWAY__JOURNAL"] = str(site.folder / "journal")
    if fallback is not None:
        site.settings["BROKER__FALLBACK"] = fallback
    outcome = Outcome()
    gateway, consumer = start_gateway(site), site.consumer()
    load = Load([site.port], QUEUE, site.folder / "sent.txt", rate=rate, keys=True)
    this = Run(site, broker, load, gateway, consumer)
    load.start()
    began = time.monotonic()
    try:
        gateway.until(lambda: load.accepted > rate * CALM, within=60, what="the first messages")
        until(lambda: site.stored() > 0, within=60, what="their rows")
        this.away_at = time.monotonic()
        begin(this)
        for number, do in enumerate(meanwhile, 1):
            _wait_until(this, this.away_at + gone * number / (len(meanwhile) + 1))
            do(this)
        if fallback is not None:
            # What the consumers had in hand is stored by then.
            _wait_until(this, this.away_at + gone / 3)
        before = site.stored()
        _wait_until(this, this.away_at + gone)
        outcome.stored_meanwhile = site.stored() - before
        end(this)
        back = time.monotonic()
        if journal:
            this.gateway.until(
                lambda: journaled(site) == 0, within=drain_within, what="an empty journal", every=0.1
            )
        outcome.drained = round(time.monotonic() - back, 1)
        # And on for a while: it went back to the broker by itself.
        direct = load.durabilities.total() - load.durabilities["journaled"] + rate
        this.gateway.until(
            lambda: load.durabilities.total() - load.durabilities["journaled"] > direct,
            within=60,
            what="messages that are not journaled",
        )
    finally:
        ended = time.monotonic()
        load.stop()
    _judge(this, outcome, ended - began)
    return outcome


def _wait_until(run: Run, at: float) -> None:
    """How long it is away is what is tested, so here time itself is waited for."""
    while time.monotonic() < at:
        run.load.check()
        assert run.gateway.running, run.gateway.tail()
        time.sleep(0.1)


def journaled(site: Site) -> float:
    """Messages in the journals of the gateway, by its own figures."""
    answer = http("GET", f"{site.url}/metrics", timeout=5)
    return next(
        float(line.split()[-1])
        for line in answer.body.decode().splitlines()
        if line.startswith("forebay_journal_messages ")
    )


def _judge(run: Run, outcome: Outcome, seconds: float) -> None:
    site, load = run.site, run.load
    outcome.accepted = load.accepted
    outcome.promised = dict(load.durabilities)
    outcome.journaled = load.durabilities["journaled"]
    outcome.slowest_answer = round(load.slowest, 2)
    outcome.rate = round(load.accepted / seconds)
    statuses = [(at, status) for at, status in load.others if at >= run.away_at]
    outcome.unanswered = sum(1 for _, status in statuses if status == 0)
    refused = [at for at, status in statuses if status != 0]
    outcome.refused_in_budget = sum(1 for at in refused if at <= run.away_at + BUDGET)
    outcome.refused_later = len(refused) - outcome.refused_in_budget
    verified = site.run("verify", str(site.folder / "sent.txt"), "--wait", "60s", "--json", timeout=600)
    outcome.verify_exit = verified.returncode
    assert verified.stdout, verified.stderr
    ledger = json.loads(verified.stdout)
    outcome.lost, outcome.duplicated = ledger["lost"], ledger["duplicated"]
    outcome.altered, outcome.dead = ledger["altered"], ledger["dead"]
    outcome.most_attempts = site.sql("select coalesce(max(attempts), 0) from messages")[0][0]
    outcome.turned_round = _turned_round(site)
    assert run.consumer.stop() == 0, run.consumer.tail()
    assert run.gateway.stop() == 0, run.gateway.tail()


def _turned_round(site: Site) -> int:
    """Rows that were stored before an older message of their key. Each client waits for its 202."""
    of_key: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    query = "select key, (payload->>'number')::int, extract(epoch from stored_at) from messages"
    for key, number, at in site.sql(query):
        of_key[key].append((number, float(at)))
    assert Counter(of_key)
    turned = 0
    for rows in of_key.values():
        rows.sort()
        latest = 0.0
        for _, at in rows:
            turned += at < latest
            latest = max(latest, at)
    return turned


def check(outcome: Outcome, *, ordered: bool = True) -> None:
    """What holds whatever happened: each 202 was true, and nobody was refused."""
    assert (outcome.lost, outcome.duplicated, outcome.altered, outcome.dead) == (0, 0, 0, 0), outcome
    assert outcome.verify_exit == 0, outcome
    assert outcome.most_attempts == 1, outcome
    assert outcome.turned_round == 0 or not ordered, outcome
    assert outcome.refused_later == 0, outcome
