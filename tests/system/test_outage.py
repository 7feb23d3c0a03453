"""A database that is away for 20 s under load costs no attempt. Ten minutes: `make soak ONLY=outage-...`."""

from __future__ import annotations

from tests.servers.postgres import Postgres
from tests.system import outage_run
from tests.system.harness import Site


def test_an_outage_under_load_burns_no_attempt(site: Site) -> None:
    # A server of its own: that of the others must not go away for so long.
    with Postgres() as postgres:
        site.database_url = postgres.create_database()
        site.migrate()
        outcome = outage_run.run(site, postgres, rate=100, outage=20)

    assert (outcome.lost, outcome.duplicated, outcome.dead, outcome.most_attempts) == (0, 0, 0, 1)
    assert outcome.verify_exit == 0
    assert outcome.backlog > 1_000
    # Two are promised, and shown by the soak where nothing else runs.
    assert outcome.first_row < 10
