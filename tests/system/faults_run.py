"""
One kind of fault after the other under a steady load: shared by the system tests (a cut) and `make soak`.

Two gateways, two consumers and a broker of our own. The next fault comes when the one
before is overcome: new messages are accepted, and what was accepted is stored. At the
end `forebay verify` judges, and so does a count of our own that does not ask it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.servers.conversations import AMQPConversation, KafkaConversation
from tests.servers.kafka import KafkaCluster
from tests.servers.postgres import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQCluster
from tests.system import sabotage
from tests.system.flights_run import MAX_ATTEMPTS_ONE, SHORT_LEASE
from tests.system.harness import FOREBAY, Process, Site, until
from tests.system.load import Load
from tests.system.sent_once import recorded_and_stored

QUEUE = "faults"
CALM = 2.0
"""Seconds without a fault at the beginning."""
STOPPED = 15.0
"""Seconds for which a broker stands still."""
OVERCOME = 90.0
"""Seconds within which a fault must be overcome."""


class Node(Protocol):
    """One server of a broker."""

    def kill(self) -> None: ...
    def start(self) -> Any: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


def _nobody_leads() -> int:
    raise AssertionError("this broker has no leader")


@dataclass
class Broker:
    """A broker as a run sees it: how it is reached, and where it can be hurt."""

    name: str
    url: str
    gateway_url: str
    """Through the proxies, where there are any."""
    nodes: Sequence[Node] = ()
    proxies: Sequence[Proxy] = ()
    leader: Callable[[], int] = _nobody_leads
    """Which node leads the queue, or a partition of it."""
    controller: Callable[[], int] = _nobody_leads
    """Which node decides who leads; Kafka has one."""
    coordinator: Callable[[], int] = _nobody_leads
    """Which node keeps the group of the queue's consumers; on Kafka."""
    redelivers: float = 2.0
    """Seconds after which, at the latest, what a dead consumer held is delivered again."""
    wait_in_sync: Callable[[], object] = lambda: None
    """Until all nodes are there and have all that was confirmed."""


@dataclass
class Injury:
    """One fault, and what the load saw of it."""

    kind: str
    gap: float
    """The longest time without a 202 until it was overcome."""
    overcome: float
    """Seconds until new messages were accepted and stored again."""


@dataclass
class Outcome:
    """What a run did and what it left behind."""

    accepted: int = 0
    retries: int = 0
    seconds: float = 0.0
    slowest_answer: float = 0.0
    rate_before: float = 0.0
    """Messages accepted per second before the first fault."""
    longest_gap_before: float = 0.0
    """The longest time without a 202 then: what this machine does by itself."""
    injuries: list[Injury] = field(default_factory=list)
    lost: int = -1
    """By our own count: recorded, and not in the database with exactly these bytes."""
    unknown: int = -1
    """Rows that nobody recorded."""
    dead_letters: int = -1
    most_attempts: int = -1
    verify: dict[str, Any] = field(default_factory=dict)
    verify_exit: int = -1

    def longest_gap(self, *kinds: str) -> float:
        return max((i.gap for i in self.injuries if not kinds or i.kind in kinds), default=0.0)


class Run:
    """The processes of one run. `gateway` and `consumer` name the sabotage that they suffer."""

    def __init__(
        self, site: Site, broker: Broker, *, rate: float, gateway: str = "", consumer: str = "", seed: int = 1
    ) -> None:
        self.site, self.broker = site, broker
        self.random = random.Random(seed)
        self.order = site.folder / "die"
        """See `sabotage.die_after_commit`."""
        self.record = site.folder / "sent.txt"
        self._how = {"gateway": gateway, "consume": consumer or f"die_after_commit={self.order}"}
        self._stored = 0
        """So many of the first accepted were seen to be stored."""
        self._ports = [site.port, free_port()]
        self._logs = itertools.count()
        self.gateways = [self._start("gateway", "--port", str(port)) for port in self._ports]
        self.consumers = [self._start("consume") for _ in range(2)]
        for process in (*self.gateways, *self.consumers):
            self._await_ready(process)
        self.load = Load(self._ports, QUEUE, self.record, rate=rate)
        self.load.start()

    def _start(self, command: str, *arguments: str) -> Process:
        how = self._how[command]
        program = [sys.executable, str(sabotage.__file__), how] if how else [FOREBAY]
        url = self.broker.gateway_url if command == "gateway" else self.broker.url
        process = Process(
            [*program, command, *arguments], env={**self.site.env, "FOREBAY_BROKER__URL": url},
            cwd=self.site.folder, log=self.site.folder / f"{command}-{next(self._logs)}.log",
        )  # fmt: skip
        self.site.processes.append(process)
        return process

    def _await_ready(self, process: Process) -> None:
        process.until(
            lambda: " is ready; " in process.output or "consuming " in process.output,
            within=OVERCOME, what="its word that it is ready",
        )  # fmt: skip

    def start_gateway(self, number: int) -> None:
        self.gateways[number] = self._start("gateway", "--port", str(self._ports[number]))
        self._await_ready(self.gateways[number])

    def start_consumer(self, number: int) -> None:
        self.consumers[number] = self._start("consume")
        self._await_ready(self.consumers[number])

    def until(self, condition: Callable[[], bool], what: str, *, within: float = OVERCOME) -> None:
        """Wait for a condition while everything runs that should."""

        def checked() -> bool:
            self.load.check()
            for process in (*self.gateways, *self.consumers):
                assert process.running, f"{process} ended by itself:\n{process.tail()}"
            return condition()

        try:
            until(checked, within=within, what=what, every=0.1)
        except AssertionError as error:
            said = [f"{p} said:\n{p.tail()}" for p in (*self.gateways, *self.consumers)]
            raise AssertionError("\n".join([str(error), *said])) from None

    def flows(self, *, seconds: float = 0.5) -> None:
        """Wait until new messages are accepted, as many as should be in so long."""
        enough = self.load.accepted + self.load.rate * seconds
        self.until(lambda: self.load.accepted >= enough, "accepting new messages")

    def goes_on(self) -> None:
        """Wait until new messages are accepted, and some stored: no more can be asked where some are lost."""
        self.flows()
        before = self.site.stored()
        self.until(lambda: self.site.stored() > before, "storing something")

    def overcome(self) -> None:
        """Wait until new messages are accepted, and whatever was accepted before that is stored."""
        self.flows()
        upto = self.load.accepted
        missing = set(self.load.ids[self._stored : upto])

        def all_stored() -> bool:
            listed = ", ".join(map(repr, missing))
            missing.difference_update(
                row[0] for row in self.site.sql(f"select id::text from messages where id in ({listed})")
            )
            return not missing

        self.until(all_stored, "storing what was accepted")
        self._stored = upto

    def take_stock(self, outcome: Outcome, *, wait: str = "60s") -> None:
        self.load.stop()
        outcome.accepted, outcome.retries = self.load.accepted, self.load.retries
        outcome.slowest_answer = self.load.slowest
        verified = self.site.run("verify", str(self.record), "--wait", wait, "--json", timeout=600)
        outcome.verify_exit = verified.returncode
        assert verified.stdout, verified.stderr
        outcome.verify = json.loads(verified.stdout)
        told, rows = recorded_and_stored(self.site, self.record, QUEUE)
        recorded, stored = set(told), set(rows)
        assert len(recorded) == outcome.accepted, "two messages got one id"
        assert len(rows) == len(stored)
        outcome.lost, outcome.unknown = len(recorded - stored), len(stored - recorded)
        outcome.dead_letters = self.site.sql("select count(*) from dead_letters")[0][0]
        outcome.most_attempts = self.site.sql("select coalesce(max(attempts), 0) from messages")[0][0]


Fault = Callable[[Run], None]


def run(
    site: Site,
    broker: Broker,
    faults: Sequence[Fault],
    *,
    rate: float,
    gateway: str = "",
    consumer: str = "",
    weakened: bool = False,
) -> Outcome:
    """
    All of `faults` under one load, each when the one before is overcome.

    A `weakened` run may lose messages, so it does not wait for all of them to be stored.
    """
    began = time.monotonic()
    site.settings |= {**MAX_ATTEMPTS_ONE, **SHORT_LEASE, "BROKER__URL": broker.url}
    site.queues = QUEUE
    outcome = Outcome()
    this = Run(site, broker, rate=rate, gateway=gateway, consumer=consumer)
    overcome = this.goes_on if weakened else this.overcome
    overcome()
    calm, before = time.monotonic(), this.load.accepted
    this.flows(seconds=CALM)
    outcome.longest_gap_before = this.load.longest_gap(calm, time.monotonic())
    outcome.rate_before = (this.load.accepted - before) / (time.monotonic() - calm)
    for fault in faults:
        # The moment within the work of a batch is what is random, so here time itself is waited for.
        time.sleep(this.random.uniform(0, 0.3))
        at = time.monotonic()
        fault(this)
        overcome()
        now = time.monotonic()
        injury = Injury(fault.__name__, this.load.longest_gap(at, now), now - at)
        outcome.injuries.append(injury)
        print(f"  {injury.kind}: {injury.gap:.2f} s without a 202, overcome in {injury.overcome:.1f} s",
              file=sys.stderr)  # fmt: skip
    this.take_stock(outcome, wait=f"{broker.redelivers + 3:g}s" if weakened else "60s")
    for process in (*this.consumers, *this.gateways):
        assert process.stop() == 0, process.tail()
    outcome.seconds = time.monotonic() - began
    return outcome


def check(outcome: Outcome) -> None:
    """Nothing lost, duplicated or altered, by our own count first, then by `verify`."""
    assert outcome.lost == 0, f"{outcome.lost} messages are lost: {outcome}"
    assert outcome.unknown == 0, f"{outcome.unknown} rows were never sent: {outcome}"
    assert outcome.dead_letters == 0
    assert outcome.most_attempts == 1
    assert outcome.verify_exit == 0, outcome.verify
    for name in ("lost", "duplicated", "altered", "dead"):
        assert outcome.verify[name] == 0, outcome.verify


def check_losses_are_found(outcome: Outcome) -> None:
    """A weakened run lost messages, and `verify` misses exactly those."""
    assert outcome.lost > 0, outcome
    assert outcome.verify_exit == 1, outcome.verify
    # Where the broker does not tell all that it holds, `verify` cannot know that nothing will come any more.
    assert outcome.verify["lost"] + outcome.verify["waiting"] == outcome.lost, outcome.verify


# ---- the faults


def gateway_killed(run: Run) -> None:
    number = run.random.randrange(2)
    run.gateways[number].kill()
    run.start_gateway(number)


def consumer_killed(run: Run) -> None:
    number = run.random.randrange(2)
    run.consumers[number].kill()
    run.start_consumer(number)


def every_consumer_killed(run: Run) -> None:
    """Whoever of them is at work is among them."""
    for consumer in run.consumers:
        consumer.kill()
    for number in range(len(run.consumers)):
        run.start_consumer(number)


def consumer_killed_after_commit(run: Run) -> None:
    """By itself, between the database's commit and the acknowledgement."""
    run.order.touch()
    until(lambda: not all(c.running for c in run.consumers), within=30, what="a consumer's end")
    number = next(n for n, c in enumerate(run.consumers) if not c.running)
    ids = run.order.with_name("die.batch").read_text().split()
    found = run.site.sql(f"select count(*) from messages where id in ({', '.join(map(repr, ids))})")
    assert found == [(len(ids),)], "it died before the commit"
    run.start_consumer(number)


def broker_restarted(run: Run) -> None:
    """SIGKILL of the only node."""
    [node] = run.broker.nodes
    node.kill()
    node.start()


def broker_killed_while_it_stands_still(run: Run) -> None:
    """What is written to its connections after the SIGSTOP it never reads: only a confirmation tells."""
    [node] = run.broker.nodes
    node.pause()
    time.sleep(1)  # how long nobody answers is what is tested
    node.kill()
    node.start()


def broker_stopped(run: Run, seconds: float = STOPPED) -> None:
    """SIGSTOP of every node."""
    for node in run.broker.nodes:
        node.pause()
    # How long nobody answers is what is tested, so here time itself is waited for.
    time.sleep(seconds)
    for node in run.broker.nodes:
        node.resume()


def broker_stopped_for_a_moment(run: Run) -> None:
    broker_stopped(run, 2.0)


def cut_before_confirm(run: Run) -> None:
    """A gateway's connection ends when the broker has stored a message and before its confirmation."""
    for proxy in run.broker.proxies:
        proxy.cut_before_confirm()
    # One of them is enough: the gateways need not all be connected through each.
    run.until(lambda: any(p.was_cut for p in run.broker.proxies), "a confirmation to cut off")


def leader_stopped(run: Run) -> None:
    """SIGSTOP of the node that leads: its connections stay."""
    node = run.broker.nodes[run.broker.leader()]
    node.pause()
    time.sleep(STOPPED)  # as above
    node.resume()
    run.broker.wait_in_sync()


def leader_killed(run: Run) -> None:
    _node_killed(run, run.broker.leader())


def controller_killed(run: Run) -> None:
    """The node that decides who leads: its successor is chosen first."""
    _node_killed(run, run.broker.controller())


def coordinator_killed(run: Run) -> None:
    """The node that keeps the consumers' group."""
    _node_killed(run, run.broker.coordinator())


def leader_killed_alone(run: Run) -> None:
    """The followers stand still while the leader goes on for a moment and dies; they wake up without it."""
    leader = run.broker.leader()
    followers = [node for n, node in enumerate(run.broker.nodes) if n != leader]
    for node in followers:
        node.pause()
    time.sleep(2)  # as above: what it confirms now, nobody else has
    run.broker.nodes[leader].kill()
    for node in followers:
        node.resume()
    run.flows()
    run.broker.nodes[leader].start()
    run.broker.wait_in_sync()


def follower_killed(run: Run) -> None:
    leader = run.broker.leader()
    _node_killed(run, run.random.choice([n for n in range(len(run.broker.nodes)) if n != leader]))


def _node_killed(run: Run, number: int) -> None:
    run.broker.nodes[number].kill()
    run.overcome()
    run.broker.nodes[number].start()
    # Or the next one would be the second of three.
    run.broker.wait_in_sync()


# ---- the brokers


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Broker]:
    url = f"sqlite:///{folder / 'queue.db'}"
    yield Broker("sqlite", url, url)


@contextlib.contextmanager
def rabbitmq(*, nodes: int = 1, proxied: bool = False) -> Iterator[Broker]:
    with ExitStack() as stack:
        cluster = stack.enter_context(RabbitMQCluster(nodes))
        url = cluster.url
        proxies = []
        if proxied:
            for node in cluster.nodes:
                proxy = stack.enter_context(Proxy(node.port, conversation=AMQPConversation))
                url = url.replace(node.address, f"127.0.0.1:{proxy.port}")
                proxies.append(proxy)

        def in_sync() -> bool:
            try:
                asked = [node.ask(f"queues/%2F/{QUEUE}") for node in cluster.nodes]
            except OSError:
                return False  # the port for this opens after the one for messages
            return all(len(answer.get("online", ())) == nodes for answer in asked)

        yield Broker(
            f"rabbitmq{nodes}", cluster.url, url, cluster.nodes, proxies,
            leader=lambda: cluster.nodes.index(cluster.leader_of(QUEUE)),
            wait_in_sync=lambda: until(in_sync, within=OVERCOME, what="all nodes in sync"),
        )  # fmt: skip


@contextlib.contextmanager
def kafka(*, nodes: int = 1, proxied: bool = False) -> Iterator[Broker]:
    with ExitStack() as stack:
        cluster = KafkaCluster(nodes)
        stack.callback(cluster.close)
        url = cluster.url
        proxies = []
        if proxied:
            for node in cluster.nodes:
                proxy = stack.enter_context(Proxy(node.port, conversation=KafkaConversation))
                # Clients go where a node says that it is, whatever they were told before.
                with (node.folder / "server.properties").open("a") as properties:
                    properties.write(f"advertised.listeners=PLAINTEXT://127.0.0.1:{proxy.port}\n")
                url = url.replace(node.address, f"127.0.0.1:{proxy.port}")
                proxies.append(proxy)
        cluster.start()
        yield Broker(
            f"kafka{nodes}", url, url, cluster.nodes, proxies,
            leader=lambda: cluster.nodes.index(cluster.leader_of(QUEUE, 0)),
            controller=lambda: cluster.nodes.index(cluster.controller()),
            coordinator=lambda: cluster.nodes.index(cluster.coordinator_of(f"forebay.{QUEUE}")),
            wait_in_sync=cluster.wait_in_sync, redelivers=20.0,
        )  # fmt: skip
