"""One bad row among many hurts only itself."""

from __future__ import annotations

import json
import re

import psycopg

from tests.servers.postgres import Postgres
from tests.system.harness import Site

BAD = 500


def test_one_bad_row_among_a_thousand(site: Site, postgres: Postgres) -> None:
    """999 are stored, 1 is dead with its reason, in at most 25 INSERT statements."""
    site.queues = "orders"
    site.settings["QUEUE_DEFAULTS__BATCH_SIZE"] = "1000"
    site.sql("alter table messages add constraint no_bad_orders check (payload->>'order' <> 'bad')")
    lines = [json.dumps({"order": "bad" if n == BAD else str(n)}) for n in range(1_000)]
    site.gateway()
    done = site.run(
        "send", "orders", "--ndjson", "-", "--url", site.url, "--record", "sent.txt",
        stdin="\n".join(lines).encode(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log_began = postgres.log.stat().st_size
    database = psycopg.conninfo.conninfo_to_dict(site.database_url)["dbname"]
    site.sql(f"alter database \"{database}\" set log_statement = 'all'")

    consumer = site.consumer("orders")

    consumer.until(lambda: site.sql("select count(*) from dead_letters")[0][0] == 1, what="the dead letter")
    assert site.stored() == 999
    ((reason, error_class, body, attempts),) = site.sql(
        "select reason, error_class, body, attempts from dead_letters"
    )
    assert "no_bad_orders" in reason
    assert "23514" in reason or "check" in f"{reason} {error_class}".lower()
    assert json.loads(body) == {"order": "bad"}
    assert attempts == 1
    with postgres.log.open() as log:
        log.seek(log_began)
        # One entry per statement; what belongs to the entry before is indented or has another level.
        entries = re.split(r"^\S+ \S+ \S+ \[\d+\] (?=[A-Z]+: )", log.read(), flags=re.M)
    inserts = [
        entry
        for entry in entries
        if entry.startswith("LOG:") and re.search(r"insert\s+into\s+\"?messages\b", entry, re.I)
    ]
    assert 2 <= len(inserts) <= 25, len(inserts)
    verified = site.run("verify", "sent.txt", "--wait", "30s", "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["dead"] == 1
