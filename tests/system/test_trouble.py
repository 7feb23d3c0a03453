"""
A database that is there and refuses: read-only, without rights, with its tables gone or changed.

In each case nothing is lost, no attempt is burned, the dead letters are not flooded, and all goes on by
itself once somebody has mended it. docs/operations.md says so.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

import pytest

from tests.servers.postgres import Postgres
from tests.system.harness import Process, Site, until

BAD = (7, 77)
"""Bodies that a CHECK refuses: before the trouble, and while it lasts."""


@dataclass(frozen=True)
class Trouble:
    begins: str
    """SQL of a superuser; {role} is the consumers' role and {database} theirs."""
    ends: str
    says: str
    """A part of the reason that the consumer gives."""


TROUBLES = {
    "read-only": Trouble(
        "ALTER ROLE {role} SET default_transaction_read_only = on",
        "ALTER ROLE {role} RESET default_transaction_read_only",
        "read-only",
    ),
    "no more right to write": Trouble(
        "REVOKE INSERT ON messages FROM {role}",
        "GRANT INSERT ON messages TO {role}",
        "permission denied for table messages",
    ),
    "table gone": Trouble(
        "ALTER TABLE messages RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO messages",
        'relation "messages" does not exist; run `forebay migrate`',
    ),
    "column gone": Trouble(
        "ALTER TABLE messages RENAME COLUMN content_type TO kind",
        "ALTER TABLE messages RENAME COLUMN kind TO content_type",
        'column "content_type" of relation "messages" does not exist',
    ),
    "dead letters gone": Trouble(
        "ALTER TABLE dead_letters RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO dead_letters",
        'relation "dead_letters" does not exist; run `forebay migrate`',
    ),
    "no more right to log in": Trouble(
        "ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN", "is not permitted to log in"
    ),
}


class Bench:
    """A consumer with a role of its own, that no superuser's rights save."""

    def __init__(self, site: Site, server: Postgres) -> None:
        self.site = site
        self.role = f"app_{secrets.token_hex(4)}"
        self._server = server
        site.queues = "orders"
        self.act("CREATE ROLE {role} LOGIN PASSWORD 'x'")
        self.act("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        self.act("ALTER TABLE messages ADD CONSTRAINT decent CHECK (get_byte(body, 0) <> 120)")
        self.database = site.database_url.rpartition("/")[2]
        site.gateway()
        limited = server.url(self.database, user=self.role, password="x")
        self.consumer = self.consume(limited)

    def consume(self, url: str) -> Process:
        return self.site.start(
            "consume", log="consume",
            env={
                "FOREBAY_DATABASE__URL": url,
                # Half a minute between two probes of a misconfiguration is a person's pace, not a test's.
                "FOREBAY_QUEUE_DEFAULTS__BREAKER__MAX_RECOVERY_TIME": "1s",
            },
        )  # fmt: skip

    def act(self, sql: str) -> None:
        self.site.sql(sql.format(role=self.role))

    def send(self, numbers: range) -> None:
        for n in numbers:
            assert self.site.post("orders", b"x" if n in BAD else b"%d" % n).status == 202

    def cut(self) -> None:
        """End the consumer's sessions: settings of a role hold for new ones."""
        self.act("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")

    def dead(self) -> int:
        return int(self.site.sql("SELECT count(*) FROM dead_letters")[0][0])


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=list(TROUBLES))
def test_a_database_that_refuses_costs_nothing(site: Site, postgres: Postgres, trouble: Trouble) -> None:
    bench = Bench(site, postgres)
    bench.send(range(50))
    bench.consumer.until(lambda: (site.stored(), bench.dead()) == (49, 1), what="all but the bad one")

    bench.act(trouble.begins)
    bench.cut()
    bench.send(range(50, 100))
    says = json.dumps(trouble.says)[1:-1]
    bench.consumer.until(lambda: says in bench.consumer.output, what="the reason in the log")
    seen = len(bench.consumer.output)
    bench.consumer.until(
        lambda: "destination" in bench.consumer.output[seen:], within=15.0, what="another try"
    )

    bench.act(trouble.ends)
    bench.cut()
    bench.consumer.until(lambda: (site.stored(), bench.dead()) == (98, 2), what="the rest")
    assert site.sql("SELECT max(attempts), count(DISTINCT id) FROM messages") == [(1, 98)]


def test_a_table_that_refuses_every_row_does_not_empty_the_queue_into_the_dead_letters(
    site: Site, postgres: Postgres
) -> None:
    """Somebody adds a column that nobody fills: each row is refused as if it were its own fault."""
    bench = Bench(site, postgres)
    bench.send(range(20))
    bench.consumer.until(lambda: site.stored() == 19, what="19 rows")

    bench.act(
        "ALTER TABLE messages ADD COLUMN tenant text, ADD CONSTRAINT filled CHECK (tenant <> '') NOT VALID"
    )
    bench.act("ALTER TABLE messages ALTER COLUMN tenant SET DEFAULT ''")
    bench.send(range(100, 350))
    bench.consumer.until(lambda: "queue paused" in bench.consumer.output, what="the budget's word")
    until(lambda: bench.dead() > 1, what="the archive")
    status = site.run("status")
    assert "suspicious failure rate" in status.stdout
    assert bench.dead() <= 101

    bench.act("ALTER TABLE messages DROP COLUMN tenant")
    assert site.run("resume", "orders").returncode == 0
    bench.consumer.until(lambda: site.stored() + bench.dead() == 270, what="all that was not given up")
    # The first of them was bad before, and is so now: a redrive would stop at it.
    ((bad,),) = site.sql("SELECT id FROM dead_letters ORDER BY died_at LIMIT 1")
    assert site.run("dead-letters", "discard", "--id", str(bad), "--yes").returncode == 0
    done = site.run("dead-letters", "redrive", "--queue", "orders", "--yes")
    bench.consumer.until(lambda: site.stored() == 269, what=f"what was given up\n{done.stdout}{done.stderr}")
    assert site.sql("SELECT count(*) FROM dead_letters WHERE status IN ('dead', 'redriving')") == [(0,)]
