"""A load that goes on while parts die, on brokers that are servers; ten of each fault are `make soak`."""

from __future__ import annotations

from tests.needs import missing_server
from tests.servers.kafka import KafkaNotInstalled
from tests.servers.rabbitmq import RabbitMQNotInstalled
from tests.system import faults_run as faults
from tests.system.harness import Site

ONE_OF_EACH = [
    faults.gateway_killed,
    faults.consumer_killed_after_commit,
    faults.cut_before_confirm,
    faults.broker_stopped_for_a_moment,
    faults.broker_restarted,
]

RATE = 200.0


def test_rabbitmq_loses_nothing_whatever_dies(site: Site) -> None:
    """One fault of each kind under one load; each message that was answered 202 is stored, once."""
    try:
        with faults.rabbitmq(proxied=True) as broker:
            kinds = [*ONE_OF_EACH, faults.consumer_killed, faults.broker_killed_while_it_stands_still]
            outcome = faults.run(site, broker, kinds, rate=RATE)
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))

    faults.check(outcome)


def test_kafka_loses_nothing_whatever_dies(site: Site) -> None:
    """As above; it takes Kafka a while to notice a dead consumer, so only one dies."""
    site.settings |= {"BROKER__KAFKA__SESSION_TIMEOUT": "6s", "BROKER__KAFKA__PARTITIONS": "4"}
    try:
        with faults.kafka(proxied=True) as broker:
            outcome = faults.run(site, broker, ONE_OF_EACH, rate=RATE)
    except KafkaNotInstalled as missing:
        missing_server(str(missing))

    faults.check(outcome)


def test_the_runs_have_teeth_for_a_gateway_without_confirms(site: Site) -> None:
    """What counts as stored when it is written to the connection dies with the broker; it is found out."""
    try:
        with faults.rabbitmq() as broker:
            outcome = faults.run(
                site, broker, [faults.broker_killed_while_it_stands_still], rate=RATE,
                gateway="confirms_off", weakened=True,
            )  # fmt: skip
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))

    faults.check_losses_are_found(outcome)


def test_the_runs_have_teeth_for_a_consumer_that_acknowledges_first(site: Site) -> None:
    """What is acknowledged before the database has it dies with the consumer; it is found out."""
    with faults.sqlite(site.folder) as broker:
        outcome = faults.run(
            site, broker, [faults.every_consumer_killed], rate=RATE, consumer="ack_first", weakened=True
        )

    faults.check_losses_are_found(outcome)
