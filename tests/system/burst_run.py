"""
Twenty times what the database can take, for a while: on an endpoint that writes to it, then on the gateway.

The database is slow as databases are when each commit has a price: a disk behind a network, a replica that
must confirm. Here that price is a statement-level trigger that sleeps for `COST` on every INSERT, and there
are `CONNECTIONS` connections to it, for either side. So orders written one by one come to CONNECTIONS / COST
a second at most, and a batch costs as much as an order. What is not modelled is a price per row (indexes, a
full disk): then batches gain less, and draining takes longer; senders to the gateway would not see that.

Both sides get the same orders at the same constant rate, one after the other, so that they do not share the
machine. A latency counts from the moment when the order was due.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from forebay.demo import direct
from forebay.demo.crew import Crew, free_port
from forebay.demo.databases import engine_for, orders_table
from forebay.demo.samples import Side, side_of
from forebay.demo.stage import Sender
from tests.servers.postgres import Postgres
from tests.system.harness import Site

COST = 0.2
"""Seconds that each INSERT takes longer, whatever it inserts."""

CONNECTIONS = 5

FACTOR = 20

_SLOW = """
create function slow() returns trigger language plpgsql as
$$ begin perform pg_sleep({cost}); return null; end $$;
create trigger slow after insert on orders for each statement execute function slow();
create trigger slow after insert on direct for each statement execute function slow();
"""

_QUEUE = """
queue_names = ["orders"]

[queues.orders.table]
name = "orders"

[queues.orders.table.columns]
id = "/id"
customer = "/customer"
total = "/total"
"""


@dataclass(kw_only=True)
class Outcome:
    capacity: float
    """Orders a second that the database takes one by one, measured."""
    rate: float
    seconds: float
    timeout: float
    """Seconds after which a sender gives up."""
    direct: Side
    gateway: Side
    idle: Side
    """The gateway under a load that the database could bear."""
    stored: int
    lost: int
    duplicated: int
    dead: int
    drained: float
    """Seconds from the end of the burst until everything was stored."""

    @property
    def bound(self) -> float:
        """What the gateway's p99 may be in the burst, in seconds."""
        assert self.idle.p99 is not None
        return max(3 * self.idle.p99, 0.05)


def run(site: Site, postgres: Postgres, *, seconds: float, timeout: float, idle: float) -> Outcome:
    """A burst of so many seconds; before it the gateway is looked at for `idle` seconds."""
    site.queues = "orders"
    config = site.folder / "forebay.toml"
    config.write_text(_QUEUE)
    site.settings |= {"CONFIG": str(config), "DATABASE__POOL_SIZE": str(CONNECTIONS)}
    engine = engine_for(site.database_url, pool=CONNECTIONS)
    tables = [orders_table(name) for name in ("orders", "direct")]
    for table in tables:
        table.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(_SLOW.format(cost=COST))
    capacity = _capacity(engine, tables[1])
    engine.dispose()
    rate = round(FACTOR * capacity, 1)
    with Crew() as crew:
        plan = {"seconds": seconds, "timeout": timeout}
        straight = _direct(crew, site.database_url, {**plan, "rate": rate})
        site.gateway()
        site.consumer()
        record = site.folder / "sent.txt"
        to_gateway = {
            **plan,
            "url": f"{site.url}/v1/queues/orders/messages",
            "record": ["orders", str(record)],
        }
        calm = _load(crew, "idle", {**to_gateway, "rate": capacity, "seconds": idle})
        burst = _load(crew, "burst", {**to_gateway, "rate": rate})
    ended = time.monotonic()
    verified = json.loads(site.run("verify", str(record), "--wait", "10m", "--json", timeout=900).stdout)
    return Outcome(
        capacity=round(capacity, 1),
        rate=rate,
        seconds=seconds,
        timeout=timeout,
        direct=straight,
        gateway=burst,
        idle=calm,
        stored=verified["done"],
        lost=verified["lost"],
        duplicated=verified["duplicated"],
        dead=verified["dead"],
        drained=round(time.monotonic() - ended, 1),
    )


def check(outcome: Outcome) -> None:
    """What holds on any machine, however busy: counts, no times."""
    assert outcome.direct.not_sent == outcome.gateway.not_sent == 0, "the load itself was not carried out"
    assert outcome.direct.failed > outcome.direct.sent / 2
    assert outcome.gateway.accepted == outcome.gateway.sent
    assert outcome.stored == outcome.gateway.sent + outcome.idle.sent
    assert (outcome.lost, outcome.duplicated, outcome.dead) == (0, 0, 0)


def _capacity(engine: sa.Engine, table: sa.Table) -> float:
    """Orders a second over all connections, each with one order at a time."""
    rounds = 8

    def write(number: int) -> None:
        for n in range(rounds):
            with engine.begin() as connection:
                connection.execute(table.insert(), {"id": f"try {number}/{n}", "customer": "c", "total": 1})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(CONNECTIONS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CONNECTIONS * rounds / (time.monotonic() - began)


def _direct(crew: Crew, database: str, plan: dict[str, Any]) -> Side:
    port = free_port()
    own = {"port": port, "database": database, "table": "direct", "pool": CONNECTIONS}
    endpoint = direct.begin(crew, own)
    side = _load(crew, "direct", {**plan, "url": f"http://127.0.0.1:{port}/orders"})
    crew.end(endpoint)
    return side


def _load(crew: Crew, name: str, plan: dict[str, Any]) -> Side:
    sender = Sender(crew, name, plan)
    sender.ready()
    sender.begin(time.monotonic() + 0.2)
    return side_of(sender.outcomes(plan["seconds"] + plan["timeout"] + 60))
