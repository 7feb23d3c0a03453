"""The runbook of docs/swapping-brokers.md, word by word, under load: nothing is lost or done twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.servers.kafka import KafkaCluster
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQCluster
from tests.system.harness import Process, Site, until

HANDLER = """
from sqlalchemy import text

tried = set()


def handle(message, db):
    if message.id[-1] == "0" and message.id not in tried:
        tried.add(message.id)
        raise RuntimeError("not at the first try")
    db.execute(text("insert into effects (id) values (:id)"), {"id": message.id})
"""
"""One message of sixteen waits for a retry: so some wait on the old broker while it is swapped."""


class Load:
    """Clients that post all the time to both gateways, and send again what was not answered 202."""

    def __init__(self, site: Site, queue: str, ports: list[int], record: Path) -> None:
        self._site, self._queue, self._ports, self._record = site, queue, ports, record
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(2)]
        self.accepted = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(30)

    def _run(self, client: int) -> None:
        ports = itertools.cycle(self._ports[client:] + self._ports[:client])
        while not self._stop.is_set():
            body = json.dumps({"number": next(self._numbers)}).encode()
            key = secrets.token_hex(8)
            while True:
                try:
                    answer = self._site.post(self._queue, body, port=next(ports), Idempotency_Key=key)
                except OSError:
                    continue  # That gateway is being restarted; the other one is there.
                if answer.status == 202:
                    break
            line = f"{answer.json['id']} {hashlib.sha256(body).hexdigest()} {self._queue}\n"
            with self._lock, self._record.open("a") as record:
                record.write(line)
                self.accepted += 1
            time.sleep(0.005)


class Installation:
    """Two gateways and two consumers."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.ports = [site.port, free_port()]
        self.gateways = [site.gateway(port=port) for port in self.ports]
        self.consumers = [self.consumer() for _ in range(2)]

    def consumer(self) -> Process:
        number = len(self.site.processes)
        return self.site.start("consume", log=f"consume-{number}")

    def swap(self, *, to: str, drain: str) -> None:
        """The runbook."""
        self.site.settings |= {"BROKER__URL": to, "BROKER__DRAIN": drain}
        for n, port in enumerate(self.ports):
            assert self.gateways[n].stop() == 0, self.gateways[n].tail()
            self.gateways[n] = self.site.gateway(port=port)
        for old in self.consumers:
            old.signal(signal.SIGTERM)
        for old in self.consumers:
            assert old.wait() == 0, old.tail()
        self.consumers = [self.consumer() for _ in self.consumers]

    def drained(self) -> None:
        for consumer in self.consumers:
            consumer.until(partial(_says_empty, consumer), within=60.0, what="an empty old broker")


def _says_empty(consumer: Process) -> bool:
    return "the old broker is empty" in consumer.output


def test_brokers_are_swapped_there_and_back_under_load(
    site: Site, rabbitmq: RabbitMQCluster, kafka: KafkaCluster
) -> None:
    site.queues = queue = f"swap-{secrets.token_hex(4)}"
    (site.folder / "handling.py").write_text(HANDLER)
    site.sql("create table effects (id uuid not null)")
    site.settings |= {
        "BROKER__URL": rabbitmq.url,
        # Its own delay queues: what other tests let wait there is not ours.
        "BROKER__RABBITMQ__PREFIX": f"{queue}.",
        # With it "empty" is known in seconds: the server tells what is on its way between two queues.
        "BROKER__RABBITMQ__MANAGEMENT_URL": rabbitmq.management_url,
        "BROKER__KAFKA__PARTITIONS": "3",
        "BROKER__KAFKA__RETRY_DELAYS": "1",
        "QUEUE_DEFAULTS__HANDLER": "handling:handle",
        "QUEUE_DEFAULTS__RETRY__BASE": "1s",
    }
    installation = Installation(site)
    record = site.folder / "sent.txt"
    load = Load(site, queue, installation.ports, record)

    with load.running():
        until(lambda: load.accepted > 100, what="100 messages on RabbitMQ")
        installation.swap(to=kafka.url, drain=rabbitmq.url)
        installation.drained()
        before = load.accepted
        until(lambda: load.accepted > before + 100, what="100 messages on Kafka")
        installation.swap(to=rabbitmq.url, drain=kafka.url)
        installation.drained()

    verified = site.run("verify", str(record), "--wait", "30s", "--json")
    ledger = json.loads(verified.stdout)
    assert verified.returncode == 0, (ledger, verified.stderr, installation.consumers[0].tail())
    assert (ledger["recorded"], ledger["done"]) == (load.accepted, load.accepted)
    ((effects, distinct),) = site.sql("select count(*), count(distinct id) from effects")
    assert effects == distinct == load.accepted


def test_swapped_without_drain_the_consumer_names_what_was_left(
    site: Site, rabbitmq: RabbitMQCluster
) -> None:
    """And with it, it takes it over."""
    site.queues = queue = f"swap-{secrets.token_hex(4)}"
    new = {"BROKER__URL": f"sqlite:///{site.folder}/new.db"}
    site.settings |= {"BROKER__URL": rabbitmq.url, "BROKER__RABBITMQ__PREFIX": f"{queue}."}
    gateway = site.gateway()
    # Nothing can be stored: what is posted stays on the broker, and the consumers report so.
    site.sql("alter table messages rename to hidden")
    consumer = site.consumer()
    for n in range(5):
        assert site.post(queue, b"%d" % n).status == 202
    consumer.until(
        lambda: site.sql(f"select held from broker_depths where queue = '{queue}' and exact") == [(5,)],
        what="a report of 5 messages",
    )
    assert (consumer.stop(), gateway.stop()) == (0, 0)
    site.sql("alter table hidden rename to messages")

    site.settings |= new
    forgetful = site.start("consume", log="forgetful")
    forgetful.until(lambda: f"held 5 messages ({queue})" in forgetful.output, what="the warning")
    assert "broker.drain" in forgetful.output
    assert "amqp://forebay:***@" in forgetful.output
    assert rabbitmq.password not in forgetful.output
    doctor = site.run("doctor")
    assert "held 5 messages" in doctor.stdout
    forgetful.stop()

    site.settings |= {"BROKER__DRAIN": rabbitmq.url}
    site.consumer().until(lambda: site.stored() == 5, what="what was left behind")
