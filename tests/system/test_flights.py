"""The main job on real input, with parts dying in the middle of it; all 336,776 flights are `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import flights
from tests.needs import missing_server
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres
from tests.system import flights_run
from tests.system.harness import Site


@pytest.fixture(scope="module")
def flight_records() -> Path:
    try:
        return flights.archive()
    except flights.NotDownloaded as error:
        missing_server(str(error))


@pytest.mark.usefixtures("flight_records")
def test_flights_survive_killed_consumers_and_a_stopped_database(site: Site, postgres: Postgres) -> None:
    """Five consumers die by SIGKILL and the database stops once; every flight is stored once, unchanged."""
    outcome = flights_run.run(site, postgres, count=20_000, consumer_kills=5, outage=3.0)

    assert outcome.consumer_kills == 5
    flights_run.check(outcome)


@pytest.mark.usefixtures("flight_records")
def test_flights_survive_killed_consumers_and_a_stopped_mariadb(mariadb_site: Site, mariadb: MariaDB) -> None:
    outcome = flights_run.run(mariadb_site, mariadb, count=20_000, consumer_kills=5, outage=3.0)

    assert outcome.consumer_kills == 5
    flights_run.check(outcome)


@pytest.mark.usefixtures("flight_records")
def test_flights_survive_killed_gateways(site: Site, postgres: Postgres) -> None:
    """What a gateway answered 202 before it died is there; the rest is sent again under the same key."""
    outcome = flights_run.run(site, postgres, count=6_000, consumer_kills=1, gateway_kills=3, outage=0.0)

    assert outcome.gateway_kills == 3
    flights_run.check(outcome)
