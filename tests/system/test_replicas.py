"""Several `forebay consume` share a queue. How much faster they are: `make soak ONLY=replicas`."""

from __future__ import annotations

from tests.needs import missing_server
from tests.servers.kafka import KafkaNotInstalled
from tests.servers.rabbitmq import RabbitMQNotInstalled
from tests.system import faults_run as faults
from tests.system.harness import Site
from tests.system.replicas_run import Replicas

REPLICAS = 2
MESSAGES = 240


def share_the_work(site: Site, url: str) -> None:
    replicas = Replicas(site, url, REPLICAS)
    replicas.until_all_take_part()
    outcome = replicas.measure(MESSAGES)
    replicas.close()

    assert sum(outcome.shares) == MESSAGES
    assert outcome.doubled == 0
    # Not by how much: the machine has other work. But nobody takes what the others wait for.
    assert min(outcome.shares) > MESSAGES / REPLICAS / 4, outcome


def test_replicas_share_the_embedded_queue(site: Site) -> None:
    share_the_work(site, f"sqlite:///{site.queue_file}")


def test_replicas_share_a_queue_of_rabbitmq(site: Site) -> None:
    try:
        with faults.rabbitmq() as broker:
            share_the_work(site, broker.url)
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))


def test_replicas_share_a_topic_of_kafka(site: Site) -> None:
    try:
        with faults.kafka() as broker:
            share_the_work(site, broker.url)
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
