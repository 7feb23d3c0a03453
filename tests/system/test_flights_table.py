"""Flights into a typed table, with poison, repaired: a cut of `make soak ONLY=flights-table`."""

from __future__ import annotations

import pytest

from tests import flights
from tests.needs import missing_server
from tests.servers.rabbitmq import RabbitMQNotInstalled
from tests.system import faults_run as faults
from tests.system import flights_table_run
from tests.system.harness import Site

COUNT = 3_000


@pytest.fixture(scope="module", autouse=True)
def _flight_records() -> None:
    try:
        flights.archive()
    except flights.NotDownloaded as error:
        missing_server(str(error))


def test_exactly_the_poison_is_dead_and_repaired_it_is_stored_once(site: Site) -> None:
    url = f"sqlite:///{site.queue_file}"

    flights_table_run.check(flights_table_run.run(site, url, count=COUNT, kills=1, within=120))


def test_on_rabbitmq_exactly_the_poison_is_dead_and_repaired_it_is_stored_once(site: Site) -> None:
    try:
        with faults.rabbitmq() as broker:
            outcome = flights_table_run.run(site, broker.url, count=COUNT, kills=1, within=120)
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))

    flights_table_run.check(outcome)
