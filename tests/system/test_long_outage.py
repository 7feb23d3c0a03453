"""
A database that is away for longer than any server's patience with a consumer that takes nothing.

RabbitMQ ends the channel of who holds a message for 30 minutes, Kafka's clients leave the
group when they have not polled for 10. Here both are seconds, and the outage is longer.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.needs import missing_server
from tests.servers.kafka import Kafka, KafkaNotInstalled
from tests.servers.postgres import Postgres, free_port
from tests.servers.rabbitmq import RabbitMQ, RabbitMQNotInstalled
from tests.system.harness import Process, Site, http, until

OUTAGE = 10.0
"""Seconds. The servers' patience is 2 s (RabbitMQ) and 3 s (Kafka)."""
BACK_WITHIN = 5.0
"""Seconds after the database takes connections again, until the first row."""


@pytest.fixture
def outage_site(tmp_path: Path, postgres: Postgres) -> Iterator[Site]:
    site = Site(tmp_path, postgres.create_database(), queues=f"long-{secrets.token_hex(4)}")
    site.migrate()
    site.settings |= {
        "CONSUMER__HEALTH_PORT": str(free_port()),
        "QUEUE_DEFAULTS__BATCH_SIZE": "20",
        # So that it is known soon that the database is back; 30 s by default.
        "QUEUE_DEFAULTS__BREAKER__MAX_RECOVERY_TIME": "1s",
    }
    yield site
    if not postgres.running:
        postgres.start()
    site.close()


def send(site: Site, count: int) -> None:
    lines = "".join(json.dumps({"number": n}) + "\n" for n in range(count))
    done = site.run("send", site.queues, "--url", site.url, "--ndjson", "-", stdin=lines.encode())
    assert done.returncode == 0, done.stderr


def outlive(site: Site, postgres: Postgres, connected: Callable[[], object]) -> None:
    """`connected` tells how the broker knows the consumer: that must not change."""
    site.gateway()
    consumer = site.consumer()
    send(site, 10)
    consumer.until(lambda: site.stored() == 10, what="the first rows")
    before = connected()
    assert before

    with caught_writing(site):
        send(site, 12)
        consumer.until(lambda: waiting_for_the_lock(site), what="a batch that is being written")
        postgres.stop("immediate")
    send(site, 200)
    consumer.until(lambda: "paused" in consumer.output, what="a consumer that pauses")
    ends = time.monotonic() + OUTAGE
    while time.monotonic() < ends:  # the length of the outage is what is tested
        assert ready(site), consumer.tail()
        assert consumer.running
        time.sleep(0.2)
    after = connected()
    postgres.start()
    back = time.monotonic()
    until(lambda: site.stored() > 10, what="the first row after the outage")
    waited = time.monotonic() - back

    consumer.until(lambda: site.stored() == 222, what="all rows")
    assert after == before == connected()
    assert waited < BACK_WITHIN
    assert site.sql("select max(attempts) from messages") == [(1,)]
    assert site.sql("select count(*) from dead_letters") == [(0,)]
    assert complaints(consumer) == []


@contextmanager
def caught_writing(site: Site) -> Iterator[None]:
    """Inside, nobody's writing ends: the database goes away while the first batch is in its hands."""
    lock = psycopg.connect(site.database_url)
    try:
        lock.execute("lock table messages in access exclusive mode")
        yield
    finally:
        lock.close()


def waiting_for_the_lock(site: Site) -> bool:
    return site.sql("select count(*) from pg_locks where not granted") != [(0,)]


def ready(site: Site) -> bool:
    return http("GET", f"http://127.0.0.1:{site.settings['CONSUMER__HEALTH_PORT']}/readyz").status == 200


ABOUT_THE_DATABASE = ("destination unavailable", "the database cannot be asked what operators want")


def complaints(consumer: Process) -> list[str]:
    """Warnings and errors that are not about the database."""
    return [
        line
        for line in consumer.output.splitlines()
        if ("warning" in line or "error" in line) and not any(known in line for known in ABOUT_THE_DATABASE)
    ]


def test_rabbitmq_keeps_a_consumer_that_takes_nothing(outage_site: Site, postgres: Postgres) -> None:
    try:
        server = RabbitMQ(
            settings={"consumer_timeout": "2000"}, advanced="[{rabbit, [{channel_tick_interval, 500}]}]"
        )
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))
    with server:
        outage_site.settings |= {"BROKER__URL": server.url, "BROKER__RABBITMQ__IDLE_HOLD": "0.5s"}

        def channels() -> list[str]:
            return sorted(server.ctl("list_channels", "pid").split()[1:])

        outlive(outage_site, postgres, channels)
        outage_site.close()


def test_kafka_keeps_a_consumer_that_takes_nothing(outage_site: Site, postgres: Postgres) -> None:
    try:
        server = Kafka()
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
    with server:
        outage_site.settings |= {
            "BROKER__URL": server.url,
            "BROKER__KAFKA__PARTITIONS": "3",
            "BROKER__KAFKA__RETRY_DELAYS": "1",
            "BROKER__KAFKA__SESSION_TIMEOUT": "6s",
            "BROKER__KAFKA__MAX_POLL_INTERVAL": "3s",
        }
        group = f"forebay.{outage_site.queues}"

        async def members() -> list[str]:
            client = AIOKafkaAdminClient(bootstrap_servers=server.url.removeprefix("kafka://"))
            await client.start()
            try:
                [described] = await client.describe_consumer_groups([group])
                return sorted(member[0] for member in described.groups[0][5])
            finally:
                await client.close()

        outlive(outage_site, postgres, lambda: asyncio.run(members()))
        outage_site.close()
