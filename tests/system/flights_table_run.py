"""
The flights into a typed table of PostgreSQL, one in a hundred of them poison, and the repair of that.

Shared by the system test (a cut) and `make soak` (all of them). Judged by our own reading of the
table: every column of every flight, and a trigger that counts each write of a row after its first.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from itertools import islice
from typing import Any

from pydantic import SecretStr

from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.dead_letters import editing
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from tests import flights_poison
from tests.flights_poison import KINDS, Flight, Load, dump
from tests.system.flights_run import MAX_ATTEMPTS_ONE, SHORT_LEASE
from tests.system.harness import Process, Site

QUEUE = "flights"

TABLE = """
create table flights (
    scheduled timestamptz not null,
    carrier varchar(3) not null,
    flight integer not null,
    origin varchar(3) not null,
    source_row integer not null,
    day date not null,
    dest varchar(3) not null,
    tailnum varchar(6),
    distance integer not null constraint flies_somewhere check (distance > 0),
    dep_delay double precision,
    arr_delay double precision,
    air_time smallint,
    extras jsonb not null,
    rewritten integer not null default 0,
    primary key (scheduled, carrier, flight, origin)
);
create function count_rewriting() returns trigger language plpgsql as
    $$ begin new.rewritten := old.rewritten + 1; return new; end $$;
create trigger rewriting before update on flights for each row execute function count_rewriting();
"""

SETTINGS = """
[queues.flights.table]
name = "flights"
on_conflict = "update"
extras = "extras"

[queues.flights.table.columns]
scheduled = "/time_hour"
carrier = "/carrier"
flight = "/flight"
origin = "/origin"
source_row = "/row"
day = "/date"
dest = "/dest"
tailnum = { from = "/tailnum", null = ["NA"] }
distance = "/distance"
dep_delay = { from = "/dep_delay", null = ["NA"] }
arr_delay = { from = "/arr_delay", null = ["NA"] }
air_time = { from = "/air_time", null = ["NA"] }
"""

_MAPPED = (
    "time_hour", "carrier", "flight", "origin", "row", "date", "dest", "tailnum", "distance", "dep_delay",
    "arr_delay", "air_time",
)  # fmt: skip

_QUICK = {
    **MAX_ATTEMPTS_ONE,
    **SHORT_LEASE,
    "BROKER__KAFKA__SESSION_TIMEOUT": "6s",
    "BROKER__KAFKA__PARTITIONS": "6",
}

_ALL = (
    "scheduled, carrier, flight, origin, source_row, day, dest, tailnum, distance, dep_delay, arr_delay,"
    " air_time, extras"
)

Row = tuple[Any, ...]


@dataclass(kw_only=True)
class State:
    """The table, the dead letters and `forebay verify` against what they should be."""

    rows: int
    missing: int
    """Flights that should be in the table and are not, or are there with another value in any column."""
    unexpected: int
    """Rows that should not be there so."""
    rewritten: int
    """Rows that were written more than once."""
    dead: dict[str, int]
    """Open dead letters by the kind of poison; "good": of a flight that was not spoiled."""
    misjudged: int
    """Of these, how many have another error class than their kind."""
    undead: int
    """Poison that is not dead."""
    verify_exit: int
    verify: dict[str, int]


@dataclass(kw_only=True)
class Outcome:
    """What the run did and what it left behind."""

    flights: int
    poison: int
    kills: int = 0
    budget_trips: int = 0
    """Entries of the audit log that say that the budget has paused the queue."""
    seconds_send: float = 0.0
    seconds_drain: float = 0.0
    """From the first send until the last flight is stored and the last poison archived."""
    seconds_repair: float = 0.0
    stopped_canaries: int = 0
    """Redrives that were tried before the repair, and stopped after the first message."""
    redriven: int = 0
    edited: int = 0
    corrected: int = 0
    """Flights sent again with another value, to take the place of their rows."""
    after_drain: State | None = None
    after_repair: State | None = None
    after_corrections: State | None = None

    @property
    def states(self) -> dict[str, State]:
        named = {
            "drained": self.after_drain, "repaired": self.after_repair, "corrected": self.after_corrections,
        }  # fmt: skip
        return {name: state for name, state in named.items() if state is not None}

    def figures(self) -> dict[str, Any]:
        return {k: round(v, 1) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass
class _Run:
    site: Site
    broker_url: str
    within: float
    load: Load = field(default_factory=Load)
    row_of_id: dict[str, int] = field(default_factory=dict)
    consumers: list[Process] = field(default_factory=list)


def run(
    site: Site, broker_url: str, *, count: int, kills: int, corrections: int = 100, within: float = 600.0
) -> Outcome:
    """Send `count` flights, one in a hundred spoiled; drain, judge, repair, judge, correct some, judge."""
    site.settings |= {**_QUICK, "BROKER__URL": broker_url}
    (site.folder / "forebay.toml").write_text(SETTINGS)
    site.sql(TABLE)
    this = _Run(site, broker_url, within)
    this.load = flights_poison.write_ndjson(site.folder / "flights.ndjson", count)
    outcome = Outcome(flights=count, poison=len(this.load.spoiled))
    gateway = site.gateway()
    this.consumers = [site.consumer(QUEUE), site.consumer(QUEUE)]
    _drain(this, outcome, kills)
    this.row_of_id = {
        id: this.load.row_of[digest]
        for id, digest, _ in map(str.split, (site.folder / "sent.txt").read_text().splitlines())
    }
    expected = {row: _as_stored(f) for row, f in this.load.flights.items() if row not in this.load.spoiled}
    outcome.after_drain = _state(this, expected, poisoned=True)
    began = time.monotonic()
    expected |= _repair(this, outcome)
    outcome.seconds_repair = time.monotonic() - began
    outcome.after_repair = _state(this, expected)
    expected |= _correct(this, outcome, corrections)
    outcome.after_corrections = _state(this, expected)
    outcome.budget_trips = int(
        site.sql("select count(*) from audit_log where detail like '%suspicious failure rate%'")[0][0]
    )
    for process in (*this.consumers, gateway):
        assert process.stop() == 0, process.tail()
    return outcome


def check(outcome: Outcome) -> None:
    """Exactly the poison was dead, everything else stored once; then all of it, once."""
    for name, bound in bounds(outcome).items():
        assert bound[0] == bound[1], (name, bound, outcome)


def bounds(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """What the run must show: each figure, and what it must be."""
    assert outcome.after_drain is not None
    assert outcome.after_repair is not None
    found = {
        "trips of the dead-letter budget": (outcome.budget_trips, 0),
        "dead after the drain": (sum(outcome.after_drain.dead.values()), outcome.poison),
        "good flights dead after the drain": (outcome.after_drain.dead.get("good", 0), 0),
        "rows after the drain": (outcome.after_drain.rows, outcome.flights - outcome.poison),
        "redriven or edited": (outcome.redriven + outcome.edited, outcome.poison),
    }
    for when, state in outcome.states.items():
        if when != "drained":
            found[f"{when}: dead"] = (sum(state.dead.values()), 0)
            found[f"{when}: rows"] = (state.rows, outcome.flights)
        found[f"{when}: written more than once"] = (
            state.rewritten, outcome.corrected if when == "corrected" else 0,
        )  # fmt: skip
        for name in ("missing", "unexpected", "misjudged", "undead", "verify_exit"):
            found[f"{when}: {name}"] = (getattr(state, name), 0)
        for name in ("lost", "duplicated", "altered", "waiting"):
            found[f"{when}: verify: {name}"] = (state.verify[name], 0)
    return found


# ---- the parts


def _drain(this: _Run, outcome: Outcome, kills: int) -> None:
    site, count = this.site, outcome.flights
    began = time.monotonic()
    sender = site.start(
        "send", QUEUE, "--ndjson", "flights.ndjson", "--record", "sent.txt", "--url", site.url, log="send"
    )
    good = count - outcome.poison

    def stored(at: int) -> bool:
        if not outcome.seconds_send and not sender.running:
            outcome.seconds_send = time.monotonic() - began
        return _rows(site) >= at

    for number in range(kills):
        _until(this, partial(stored, good * (number + 1) // (kills + 1)), "a part of the flights")
        this.consumers[0].kill()
        outcome.kills += 1
        this.consumers[0] = site.consumer(QUEUE)
    _until(this, lambda: stored(0) and not sender.running, "the sender's end")
    assert sender.wait() == 0, sender.tail()
    outcome.seconds_send = outcome.seconds_send or time.monotonic() - began
    _until(this, lambda: _rows(site) >= good, "the last good flight")
    _until(this, lambda: _dead(site) >= outcome.poison, "the last poison's dead letter")
    outcome.seconds_drain = time.monotonic() - began


def _repair(this: _Run, outcome: Outcome) -> dict[int, Row]:
    """What the table then holds besides."""
    site = this.site
    curable = [kind for kind, poison in KINDS.items() if poison.cure]
    samples = {
        this.load.spoiled[this.row_of_id[group["sample_id"]]]: group["fingerprint"]
        for group in _json(site, "dead-letters", "list", "--groups", "--json")
    }
    # Too early: the canary dies again, and nothing else is sent.
    early = site.run("dead-letters", "redrive", "--group", samples["too long"], "--canary", "--yes", "--json")
    assert early.returncode != 0, early
    [job] = _json(site, "dead-letters", "jobs", "--json")
    assert (job["state"], job["sent"]) == ("stopped", 1), job
    outcome.stopped_canaries += 1
    for kind in curable:
        site.sql(KINDS[kind].cure or "")
        done = site.run(
            "dead-letters", "redrive", "--group", samples[kind], "--canary", "--yes", "--json",
            timeout=this.within,
        )  # fmt: skip
        assert done.returncode == 0, (kind, done)
        outcome.redriven += json.loads(done.stdout)["sent"]
    outcome.edited = asyncio.run(_edit(this, [kind for kind in KINDS if kind not in curable]))
    _until(this, lambda: _rows(site) >= outcome.flights, "the last repaired flight")
    _until(this, lambda: _dead(site) == 0, "no dead letter")
    added = {}
    for row, kind in this.load.spoiled.items():
        flight = this.load.flights[row]
        if kind in curable:
            flight = json.loads(KINDS[kind].spoil(flight))
        added[row] = _as_stored(flight)
    return added


async def _edit(this: _Run, kinds: list[str]) -> int:
    """Send each dead letter of these kinds as the flight should have been, as a new message."""
    settings = BrokerSettings.model_validate({"url": SecretStr(this.broker_url)})
    database = Database(this.site.database_url)
    try:
        records = DeadLetterStore(database).list(
            DeadLetterFilter(queue=QUEUE, status="dead"), limit=1_000_000, bodies=True
        )
        async with open_broker(settings, create=False) as broker:
            for record in records:
                row = this.row_of_id[record.id]
                assert this.load.spoiled[row] in kinds, (row, record)
                edit = editing.plan(record, dump(this.load.flights[row]))
                await editing.send(database, broker, edit, by="the repair")
    finally:
        database.dispose()
    return len(records)


def _correct(this: _Run, outcome: Outcome, corrections: int) -> dict[int, Row]:
    """Send some flights again, arrived 5 minutes later: their rows change, and no other."""
    good = (f for row, f in this.load.flights.items() if row not in this.load.spoiled)
    changed = [f | {"arr_delay": "5"} for f in islice(good, corrections) if f["arr_delay"] != "5"]
    done = this.site.run(
        "send", QUEUE, "--ndjson", "-", "--url", this.site.url, "--record", "sent.txt",
        stdin=b"\n".join(map(dump, changed)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome.corrected = len(changed)
    _until(this, lambda: _count(this.site, "flights where rewritten > 0") >= len(changed), "the corrections")
    return {int(f["row"]): _as_stored(f) for f in changed}


# ---- what is there


def _state(this: _Run, expected: dict[int, Row], *, poisoned: bool = False) -> State:
    site = this.site
    rows = site.sql(f"select {_ALL} from flights")
    wanted, there = Counter(map(_hashable, expected.values())), Counter(map(_hashable, rows))
    letters = site.sql("select id::text, error_class from dead_letters where status in ('dead', 'redriving')")
    kinds = [(this.load.spoiled.get(this.row_of_id.get(id, 0), "good"), found) for id, found in letters]
    done = site.run("verify", "sent.txt", "--wait", "60s", "--json", timeout=600)
    assert done.stdout, done.stderr
    dead = {this.row_of_id.get(id, 0) for id, _ in letters}
    return State(
        rows=len(rows),
        missing=(wanted - there).total(),
        unexpected=(there - wanted).total(),
        rewritten=_count(site, "flights where rewritten > 0"),
        dead=dict(Counter(kind for kind, _ in kinds)),
        misjudged=sum(kind == "good" or found != KINDS[kind].error_class for kind, found in kinds),
        undead=len(this.load.spoiled.keys() - dead) if poisoned else 0,
        verify_exit=done.returncode,
        verify={k: v for k, v in json.loads(done.stdout).items() if isinstance(v, int)},
    )


def _as_stored(flight: Flight) -> Row:
    def number(name: str) -> int | None:
        return None if flight[name] == "NA" else int(flight[name])

    extras = {name: value for name, value in flight.items() if name not in _MAPPED}
    tail = None if flight["tailnum"] == "NA" else flight["tailnum"]
    return (
        datetime.fromisoformat(flight["time_hour"]), flight["carrier"], int(flight["flight"]),
        flight["origin"], int(flight["row"]), date.fromisoformat(flight["date"]), flight.get("dest"), tail,
        int(flight["distance"]), number("dep_delay"), number("arr_delay"), number("air_time"), extras,
    )  # fmt: skip


def _hashable(row: Row) -> Row:
    scheduled, *values, extras = row
    return (scheduled.astimezone(UTC), *values, json.dumps(extras, sort_keys=True))


def _count(site: Site, what: str) -> int:
    return int(site.sql(f"select count(*) from {what}")[0][0])


def _rows(site: Site) -> int:
    return _count(site, "flights")


def _dead(site: Site) -> int:
    return _count(site, "dead_letters where status in ('dead', 'redriving')")


def _json(site: Site, *command: str) -> Any:
    done = site.run(*command)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def _until(this: _Run, condition: Any, what: str) -> None:
    def checked() -> bool:
        for consumer in this.consumers:
            assert consumer.running, consumer.tail()
        return bool(condition())

    this.consumers[1].until(checked, within=this.within, what=what, every=0.25)
