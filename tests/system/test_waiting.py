"""Prefer: wait on real processes: 201 when the row is there; a database that dies makes no error of it."""

from __future__ import annotations

import threading

from tests.servers.postgres import Postgres
from tests.system.harness import Answer, Site


def test_a_client_that_waits_is_told_and_a_dead_database_makes_no_error(site: Site) -> None:
    with Postgres() as postgres:
        site.database_url = postgres.create_database()
        site.migrate()
        site.gateway()
        consumer = site.consumer()
        stored = site.post("flights", b"{}", Prefer="wait=30")
        consumer.stop()
        told: list[Answer] = []
        waiting = threading.Thread(
            target=lambda: told.append(site.post("flights", b'{"n": 2}', Prefer="wait=8"))
        )
        waiting.start()
        postgres.stop("immediate")
        waiting.join(30)
        late = site.post("flights", b'{"n": 3}', Prefer="wait=1")
        postgres.start()
        site.consumer()
        found = site.post("flights", b'{"n": 4}', Prefer="wait=30")

    assert (stored.status, stored.json["state"]) == (201, "stored")
    assert [(a.status, a.json["state"]) for a in (*told, late)] == [(202, "accepted")] * 2
    assert (found.status, found.json["state"]) == (201, "stored")
