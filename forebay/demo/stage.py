"""
The parts put together: two ways into one database, the same load on both, and what can be broken.

Everything that works here is what users run: `forebay migrate`, `gateway`, `consume`, `verify`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from forebay.demo import direct
from forebay.demo.crew import Crew, DemoError, free_port
from forebay.demo.databases import engine_for, orders_table
from forebay.demo.load import Outcomes, Tick
from forebay.demo.servers import Missing, Part, PostgreSQL, RabbitMQ
from forebay.demo.standins import Elsewhere, Files
from forebay.ledger import Recorder

POISON = b'{"id": "poison", "customer": "customer 13", "total": "free of charge"}'
"""An order that no database takes: its total is no number."""

_SETTINGS = """\
queue_names = ["{queue}"]
broker.url = "{broker}"
database.url = "{database}"

[gateway]
port = {port}
journal = "{folder}/journal"

[consumer]
state_dir = "{folder}/consumers"

[broker.rabbitmq]
replicas = 1

[queues.{queue}.table]
name = "{table}"

[queues.{queue}.table.columns]
id = "/id"
customer = "/customer"
total = "/total"
"""


@dataclass(frozen=True)
class Parts:
    database: Part
    broker: Part
    notes: tuple[str, ...] = ()
    """Why these, where others would have been better."""


def choose(crew: Crew, *, database_url: str | None, broker_url: str | None, embedded: bool) -> Parts:
    """The servers behind the URLs, else those of this machine, else files."""
    notes: list[str] = []

    def found(server: Callable[[Crew], Part], instead: str) -> Part | None:
        if embedded:
            return None
        try:
            return server(crew)
        except Missing as why:
            notes.append(f"{why}: {instead}")
            return None

    database: Part | None
    if database_url is not None:
        database = Elsewhere("the database", database_url)
    else:
        database = found(PostgreSQL, "SQLite plays the database, and dies by a lock on its file")
    if database is None:
        # A file for each way in: SQLite lets one write at a time, and they are not to compete.
        database = Files(crew, "SQLite", crew.folder / "forebay.db", crew.folder / "direct.db")
    broker: Part | None
    if broker_url is not None:
        broker = Elsewhere("the broker", broker_url)
    else:
        broker = found(RabbitMQ, "the embedded queue plays the broker, and dies by a lock on its file")
    if broker is None:
        broker = Files(crew, "the embedded queue", crew.folder / "queue.db")
    return Parts(database, broker, tuple(notes))


class Sender:
    """A load that runs in a process of its own, and what it last said."""

    def __init__(self, crew: Crew, name: str, plan: dict[str, Any]) -> None:
        self.tick = Tick(0.0, 0, 0, 0, 0.0, None, None)
        self._outcomes = crew.folder / f"{name}.outcomes"
        command = [
            sys.executable, "-m", "forebay.demo.sender", json.dumps({**plan, "outcomes": str(self._outcomes)})
        ]  # fmt: skip
        self._member = crew.start(name, command, talk=True)
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)

    def ready(self) -> None:
        if self._member.stdout.readline() != "ready\n":
            raise DemoError(f"{self._member.name} cannot be started:\n{self._member.last_words()}")

    def begin(self, at: float) -> None:
        """Start sending at that moment of the monotonic clock."""
        self._member.stdin.write(f"{at}\n")
        self._member.stdin.flush()
        self._reader.start()

    def outcomes(self, within: float) -> Outcomes:
        """What became of each request, when all have an end."""
        self._member.wait(within)
        return Outcomes.read(self._outcomes)

    def _read(self) -> None:
        for line in self._member.stdout:
            self.tick = Tick(**json.loads(line))


@dataclass(frozen=True)
class Counts:
    """What the database holds."""

    stored: int = 0
    dead: int = 0


class Stage:
    """Gateway, consumer and the direct endpoint on the chosen parts."""

    def __init__(self, crew: Crew, parts: Parts) -> None:
        self.parts = parts
        self.counts = Counts()
        """As last seen: while the database is away nobody can look."""
        self.record = crew.folder / "sent.txt"
        self._crew = crew
        self._gateway_port, self._consumer_port, self._direct_port = free_port(), free_port(), free_port()
        # Names that nobody else has: the servers may be others'.
        suffix = secrets.token_hex(4)
        self.queue, self._table = f"demo-orders-{suffix}", f"demo_orders_{suffix}"
        self._direct_table = f"demo_direct_{suffix}"
        self._settings = crew.folder / "forebay.toml"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")},
            "FOREBAY_CONFIG": str(self._settings),
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self._gateway_port}/v1/queues/{self.queue}/messages"

    @property
    def direct_url(self) -> str:
        return f"http://127.0.0.1:{self._direct_port}/orders"

    def build(self) -> None:
        """
        Start everything, and return when it is ready for work.

        Raises:
            DemoError: something does not start.
        """
        database, broker = self.parts.database, self.parts.broker
        self._settings.touch(0o600)  # the URLs have passwords in them
        self._settings.write_text(
            _SETTINGS.format(
                queue=self.queue, broker=broker.url, database=database.url, port=self._gateway_port,
                folder=self._crew.folder, table=self._table,
            )
        )  # fmt: skip
        with ThreadPoolExecutor() as side_by_side:
            # A broker takes its time to start.
            started = side_by_side.submit(broker.start)
            database.start()
            self._crew.run("migrate", self._forebay("migrate"), env=self._environment, within=60)
            engine = engine_for(database.url)
            orders_table(self._table).create(engine)
            engine.dispose()
            started.result()
        gateway = self._crew.start("gateway", self._forebay("gateway"), env=self._environment)
        consumer = self._crew.start(
            "consumer", self._forebay("consume", "--port", str(self._consumer_port)), env=self._environment
        )
        plan = {"port": self._direct_port, "database": self._direct_database(), "table": self._direct_table}
        direct.begin(self._crew, plan)
        gateway.until(lambda: _ready(self._gateway_port), within=60)
        consumer.until(lambda: _ready(self._consumer_port), within=60)
        threading.Thread(target=self._count, name="counting", daemon=True).start()

    def send_poison(self) -> None:
        """One order that will not fit, accepted like all the others."""
        connection = http.client.HTTPConnection("127.0.0.1", self._gateway_port, timeout=30)
        connection.request(
            "POST", urlsplit(self.gateway_url).path, POISON, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if answer.status != 202:
            raise DemoError(f"the gateway answered {answer.status}: {said.decode(errors='replace')}")
        recorder = Recorder(self.record)
        recorder.add(json.loads(said)["id"], hashlib.sha256(POISON).hexdigest(), self.queue)
        recorder.close()

    def verify(self, within: float) -> dict[str, Any]:
        """What `forebay verify` finds: the record of what was answered 202, against what is stored."""
        command = self._forebay("verify", str(self.record), "--wait", f"{within:g}s", "--json")
        verify = self._crew.start("verify", command, env=self._environment, talk=True)
        said = verify.stdout.read()
        self._crew.end(verify, signal.SIGTERM)
        if not said:
            raise DemoError(f"forebay verify says nothing:\n{verify.last_words()}")
        found: dict[str, Any] = json.loads(said)
        return found

    def direct_rows(self) -> int:
        """What the direct endpoint has stored, whatever it told the senders."""
        engine = engine_for(self._direct_database())
        with engine.connect() as connection:
            rows = connection.execute(
                sa.select(sa.func.count()).select_from(orders_table(self._direct_table))
            )
            found = int(rows.scalar_one())
        engine.dispose()
        return found

    def tidy(self) -> None:
        """
        Where the database is not ours: take our tables with us, once the crew has gone.

        Raises:
            DemoError: they stay; with their names.
        """
        database = self.parts.database
        if not isinstance(database, Elsewhere):
            return
        database.mend()
        engine = engine_for(database.url)
        try:
            for name in (self._table, self._direct_table):
                orders_table(name).drop(engine, checkfirst=True)
        except sa.exc.SQLAlchemyError as error:
            text = (
                f"the tables {self._table} and {self._direct_table} stay in the database; drop them: {error}"
            )
            raise DemoError(text) from error
        finally:
            engine.dispose()

    def _direct_database(self) -> str:
        database = self.parts.database
        return database.urls[1] if isinstance(database, Files) else database.url

    @staticmethod
    def _forebay(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "forebay.cli.main", *arguments]

    def _count(self) -> None:
        """Looks as often as it can, from a thread of its own: a database that is away may keep it waiting."""
        engine = engine_for(self.parts.database.url, pool=1, patience=1)
        stored = sa.select(sa.func.count()).select_from(orders_table(self._table))
        dead = sa.text("select count(*) from dead_letters where queue = :queue")
        while True:
            try:
                with engine.connect() as connection:
                    self.counts = Counts(
                        connection.execute(stored).scalar_one(),
                        connection.execute(dead, {"queue": self.queue}).scalar_one(),
                    )
            except sa.exc.SQLAlchemyError:
                pass  # it is away; the last figures stand
            time.sleep(0.2)


def _ready(port: int) -> bool:
    """Whether the gateway or consumer there serves."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
