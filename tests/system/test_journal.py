"""A gateway that goes on without its broker, on real servers. Long runs: `make soak ONLY=journal-...`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.needs import missing_server
from tests.servers.kafka import KafkaNotInstalled
from tests.servers.rabbitmq import RabbitMQNotInstalled
from tests.system import faults_run, journal_run
from tests.system.faults_run import Broker
from tests.system.harness import Site

RATE = 100.0


@pytest.fixture
def rabbit() -> Iterator[Broker]:
    """A RabbitMQ of our own: that of the others must not go away."""
    try:
        with faults_run.rabbitmq() as broker:
            yield broker
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))


@pytest.fixture
def kafka_alone() -> Iterator[Broker]:
    try:
        with faults_run.kafka() as broker:
            yield broker
    except KafkaNotInstalled as missing:
        missing_server(str(missing))


def test_rabbitmq_is_killed_under_load_and_nobody_is_refused(site: Site, rabbit: Broker) -> None:
    """The gateway is killed in the middle of it, too, and finds what it had journaled."""
    outcome = journal_run.run(site, rabbit, rate=RATE, gone=4, meanwhile=[journal_run.Run.kill_gateway])

    journal_run.check(outcome)
    assert outcome.journaled > RATE


def test_kafka_is_killed_under_load_and_nobody_is_refused(site: Site, kafka_alone: Broker) -> None:
    site.settings |= {"BROKER__KAFKA__SESSION_TIMEOUT": "6s", "BROKER__KAFKA__PARTITIONS": "4"}
    outcome = journal_run.run(site, kafka_alone, rate=RATE, gone=4)

    journal_run.check(outcome)
    assert outcome.journaled > RATE


def test_a_broker_that_stands_still_costs_no_request_more_than_the_budget(site: Site, rabbit: Broker) -> None:
    """SIGSTOP: its connections stay, and nothing is answered."""
    outcome = journal_run.run(
        site, rabbit, rate=RATE, gone=4, begin=journal_run.paused, end=journal_run.resumed
    )

    journal_run.check(outcome)
    assert outcome.journaled > RATE
