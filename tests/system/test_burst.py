"""A burst of twenty times the database's capacity, for 2 s. For 30 s, with times: `make soak ONLY=burst`."""

from __future__ import annotations

from tests.servers.postgres import Postgres
from tests.system import burst_run
from tests.system.harness import Site


def test_a_burst_is_accepted_whole_and_stored_where_the_direct_endpoint_drops_most(
    site: Site, postgres: Postgres
) -> None:
    burst_run.check(burst_run.run(site, postgres, seconds=2, timeout=2, idle=1))
