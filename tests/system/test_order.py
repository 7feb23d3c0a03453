"""Order by key through failures: a cut of `make soak ONLY=order-sqlite` and `order-kafka`."""

from __future__ import annotations

from tests.needs import missing_server
from tests.servers.kafka import KafkaNotInstalled
from tests.system import faults_run as faults
from tests.system import order_run
from tests.system.harness import Site


def test_on_the_embedded_queue_no_failure_turns_two_messages_of_a_key_round(site: Site) -> None:
    url = f"sqlite:///{site.queue_file}"
    order_run.check(order_run.run(site, url, count=3_000, keys=100, kills=2))


def test_on_kafka_no_failure_turns_two_messages_of_a_key_round(site: Site) -> None:
    try:
        with faults.kafka() as broker:
            order_run.check(order_run.run(site, broker.url, count=3_000, keys=100, kills=1))
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
