"""
A PostgreSQL table as Forebay's queue: an example of a broker driver outside the package.

    pip install ./examples/pgqueue
    FOREBAY_BROKER__URL=pgqueue://user:password@host/database forebay gateway

One row per message, from its acceptance to its end. A row on loan names its owner, a
number whose advisory lock the subscription's session holds: when the session ends,
however it ends, the lock is free, and whoever finds it so hands the rows back. A
subscription polls (POLL); a frozen consumer keeps what it holds until its session ends.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import orjson
import psycopg

from forebay.brokers import wire
from forebay.brokers.api import (
    Ack,
    Capabilities,
    DeadLetter,
    Death,
    Delivery,
    Depth,
    Durability,
    Failure,
    Finding,
    PublishResult,
    Release,
    Retry,
    Settlement,
    Share,
    refuse_ordered,
)
from forebay.brokers.naming import (
    check_queue_name,
    dead_letter_queue,
    is_dead_letter_queue,
    origin_queue,
)
from forebay.brokers.settings import BrokerSettings
from forebay.errors import (
    BrokerClosed,
    BrokerUnavailable,
    MessageDecodeError,
    MessageTooLarge,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    QueueNotFound,
    SettingsError,
)
from forebay.message import Message

T = TypeVar("T")
Connection = psycopg.AsyncConnection[Any]

POLL = 0.1
"""Seconds between two looks of a subscription that waits."""
REAP = 0.5
"""Seconds between two looks for rows whose owner is gone."""
ANSWER = 5.0
"""Seconds within which the server must have answered."""
MAX_BODY = 900_000
FAR = 100 * 366 * 86_400.0
"""Seconds; a handler may ask for an infinite delay."""

TABLES = """
select pg_advisory_xact_lock(4611686018427387904);
create table if not exists forebay_broker (identity text primary key);
create table if not exists forebay_queue (name text primary key);
create table if not exists forebay_message (
  seq bigserial primary key,
  queue text not null,
  due bigint not null,      -- microseconds since the epoch; 0: at once
  owner bigint,             -- whose loan it is
  accepted_at bigint not null,
  headers text not null,    -- what forebay.brokers.wire makes of the metadata, as JSON
  body bytea not null
);
create index if not exists forebay_message_free on forebay_message (queue, seq) where owner is null;
create index if not exists forebay_message_lent on forebay_message (owner) where owner is not null;
create sequence if not exists forebay_owner;
"""
TAKE = """
update forebay_message set owner = %s where seq in (
  select seq from forebay_message where queue = %s and owner is null and due <= %s
  order by seq limit %s for update skip locked
) returning seq, headers, body
"""
DEPTH = """
select count(*) filter (where owner is null and due <= %(now)s),
       count(*) filter (where owner is null and due > %(now)s),
       count(*) filter (where owner is not null),
       coalesce(sum(length(body)), 0)::bigint, min(accepted_at)
from forebay_message where queue = %(queue)s
"""


@asynccontextmanager
async def open_broker(url: str, settings: BrokerSettings) -> AsyncIterator[PgQueue]:
    """
    What the entry point names.

    Raises:
        SettingsError: the URL is not readable.
        BrokerUnavailable: the server cannot be reached.
    """
    broker = PgQueue("postgresql" + url.removeprefix("pgqueue"))
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


class Late(Exception):
    """No answer in time. `begun`: the statements may have been carried out."""

    def __init__(self, begun: bool) -> None:
        super().__init__("no answer in time")
        self.begun = begun


class Line:
    """
    One session. After an error, and when no answer comes, it is given up and the next use makes a new one.

    Work goes on when its caller is cancelled or has waited long enough: what a session is
    in the middle of cannot be taken back.
    """

    def __init__(self, conninfo: str, on_connect: Callable[[Connection], Awaitable[None]]) -> None:
        self._conninfo = conninfo
        self._on_connect = on_connect
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def do(self, work: Callable[[Connection], Awaitable[T]], timeout: float) -> T:
        """
        One transaction.

        Raises:
            Late
            BrokerUnavailable: the connection failed; `__cause__` tells how.
        """
        begun = False

        async def in_turn(turn: asyncio.Lock) -> T:
            nonlocal begun
            async with turn:
                db = self._connection
                try:
                    if db is None:
                        db = await Connection.connect(self._conninfo, connect_timeout=int(ANSWER))
                        await self._on_connect(db)
                    begun = True
                    async with db.transaction():
                        result = await work(db)
                except psycopg.OperationalError as error:
                    await self._give_up(db)
                    raise BrokerUnavailable(f"PostgreSQL: {str(error).splitlines()[0]}") from error
                except BaseException:
                    await self._give_up(db)
                    raise
                if turn is self._turn:
                    self._connection = db
                else:
                    await self._give_up(db)
                return result

        task = asyncio.ensure_future(in_turn(self._turn))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, timeout))
        if not done:
            # Whoever comes next gets another session, and need not wait for this one.
            self._connection, self._turn = None, asyncio.Lock()
            raise Late(begun)
        return task.result()

    async def _give_up(self, db: Connection | None) -> None:
        if db is not None:
            if self._connection is db:
                self._connection = None
            await db.close()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        for task in self._tasks:
            task.cancel()
        await self._give_up(self._connection)


class PgQueue:
    """The broker: one session to publish, one for questions, one for each subscription."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._publishing = Line(conninfo, _nothing)
        self._asking = Line(conninfo, _nothing)
        self._subscriptions: set[PgSubscription] = set()
        self._known: set[str] = set()
        self._durability: Durability = "unsynced"
        self._identity = ""
        self._closed = False

    async def start(self) -> None:
        async def prepare(db: Connection) -> tuple[str, bool]:
            await db.execute(TABLES)
            await db.execute(
                "insert into forebay_broker select %s where not exists (select from forebay_broker)",
                (str(uuid.uuid4()),),
            )
            row = await (
                await db.execute(
                    "select identity, current_setting('fsync') = 'on'"
                    " and current_setting('synchronous_commit') <> 'off' from forebay_broker"
                )
            ).fetchone()
            assert row is not None
            return row[0], row[1]

        try:
            self._identity, durable = await self._ask(prepare)
        except psycopg.ProgrammingError as error:
            raise SettingsError(f"broker.url: {str(error).splitlines()[0]}") from None
        self._durability = "synced" if durable else "unsynced"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability=self._durability,
            ordering="one_subscription",
            bounded=False,
            max_body_bytes=MAX_BODY,
            retry_delays=None,
        )

    @property
    def identity(self) -> str:
        return f"pgqueue {self._identity}"

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        self._check_open()
        deadline = time.monotonic() + timeout
        await self._check_declared(queue, timeout)
        errors: list[PublishError | None] = []
        rows: list[tuple[Any, ...]] = []
        for m in messages:
            try:
                rows.append(_row(queue, m))
                errors.append(None)
            except PublishError as error:
                errors.append(error)

        async def insert(db: Connection) -> None:
            await db.cursor().executemany(
                "insert into forebay_message (queue, due, accepted_at, headers, body)"
                " values (%s, %s, %s, %s, %s)",
                rows,
            )

        unknown: PublishError | None = None
        try:
            if rows:
                await self._publishing.do(insert, deadline - time.monotonic())
        except Late as late:
            if not late.begun:
                raise BrokerUnavailable("PostgreSQL did not answer; nothing was sent") from None
            unknown = PublishUnconfirmed("PostgreSQL did not confirm in time; the message may be stored")
        except BrokerUnavailable as error:
            # A connection that ends while it commits leaves open what became of it.
            unknown = PublishUnconfirmed(f"{error}; the message may be stored")
        return [
            PublishResult(message_id=m.id, error=e or unknown)
            if e or unknown
            else PublishResult(message_id=m.id, durability=self._durability)
            for m, e in zip(messages, errors, strict=True)
        ]

    async def declare(self, queue: str) -> Durability:
        self._check_open()
        check_queue_name(queue)

        async def insert(db: Connection) -> None:
            await db.cursor().executemany(
                "insert into forebay_queue values (%s) on conflict do nothing",
                [(queue,), (dead_letter_queue(queue),)],
            )

        await self._ask(insert)
        return self.capabilities.durability

    async def declared_queues(self) -> list[str]:
        self._check_open()
        return sorted(name for name in await self._names() if not is_dead_letter_queue(name))

    @asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[PgSubscription]:
        self._check_open()
        refuse_ordered(ordered, "pgqueue")
        await self._check_declared(queue)
        subscription = PgSubscription(self._conninfo, queue, prefetch)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.close()

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        await self._check_declared(queue)

        async def count(db: Connection) -> tuple[Any, ...]:
            row = await (await db.execute(DEPTH, {"queue": queue, "now": _now()})).fetchone()
            assert row is not None
            return tuple(row)

        waiting, scheduled, in_hand, size, oldest = await self._ask(count)
        return Depth(
            waiting=waiting,
            scheduled=scheduled,
            in_hand=in_hand,
            bytes=size,
            oldest_age=None if oldest is None else max(0.0, (_now() - oldest) / 1e6),
        )

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        self._check_open()
        if self._durability == "synced":
            return [Finding(check="durability", verdict="ok", text="fsync and synchronous_commit are on")]
        fix = "set fsync = on and synchronous_commit = on"
        return [
            Finding(check="durability", verdict="warn", text="PostgreSQL commits before the disk", fix=fix)
        ]

    async def ping(self) -> None:
        self._check_open()

        async def select(db: Connection) -> None:
            await db.execute("select 1")

        try:
            await self._publishing.do(select, 2.0)
        except Late:
            raise BrokerUnavailable("PostgreSQL does not answer") from None

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.gather(*(s.close() for s in self._subscriptions))
            await asyncio.gather(self._publishing.close(), self._asking.close())

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("this broker was closed")

    async def _names(self, timeout: float = ANSWER) -> set[str]:
        async def select(db: Connection) -> set[str]:
            return {row[0] for row in await (await db.execute("select name from forebay_queue")).fetchall()}

        return await self._ask(select, timeout)

    async def _check_declared(self, queue: str, timeout: float = ANSWER) -> None:
        if queue not in self._known:
            self._known = await self._names(timeout)
        if queue not in self._known:
            raise QueueNotFound(queue)

    async def _ask(self, question: Callable[[Connection], Awaitable[T]], timeout: float = ANSWER) -> T:
        try:
            return await self._asking.do(question, timeout)
        except Late:
            raise BrokerUnavailable("PostgreSQL does not answer") from None


class PgSubscription:
    """One owner. Its session holds the advisory lock that says that it lives."""

    def __init__(self, conninfo: str, queue: str, prefetch: int) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._line = Line(conninfo, self._become_owner)
        self._owner = 0
        self._ready: deque[Delivery] = deque()
        self._held: dict[int, Delivery] = {}
        self._reaped_at = 0.0
        self._news = asyncio.Event()
        self._closed = False

    async def _become_owner(self, db: Connection) -> None:
        """A new session is a new owner: what the one before held is handed back without us."""
        row = await (await db.execute("select nextval('forebay_owner')")).fetchone()
        assert row is not None
        await db.execute("select pg_advisory_lock(%s)", (row[0],))
        await db.commit()
        self._owner = row[0]
        self._ready.clear()
        self._held.clear()

    def share(self) -> Share:
        return Share(in_hand=len(self._held) + len(self._ready))

    # ---- receive

    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        deadline = time.monotonic() + max_wait
        while True:
            self._check_open()
            room = min(max_messages, self._prefetch - len(self._held))
            if len(self._ready) < room:
                patience = max(2.0, deadline - time.monotonic())
                try:
                    await self._line.do(partial(self._take, room), patience)
                except Late:
                    raise BrokerUnavailable("PostgreSQL does not answer") from None
                self._check_open()
            left = deadline - time.monotonic()
            if left <= 0 or len(self._ready) >= room > 0:
                return self._hand_out(room)
            self._news.clear()
            try:
                async with asyncio.timeout(min(left, POLL)):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _take(self, room: int, db: Connection) -> None:
        """Puts what it takes where a later call finds it, should this one be cancelled."""
        if time.monotonic() - self._reaped_at > REAP:
            await self._reap(db)
        want = room - len(self._ready)
        if want <= 0 or self._closed:
            return
        taken = await (await db.execute(TAKE, (self._owner, self._queue, _now(), want))).fetchall()
        for seq, headers, body in sorted(taken):
            try:
                decoded = wire.decode(orjson.loads(headers), body)
            except (MessageDecodeError, ValueError) as error:
                await self._adopt(db, seq, str(error))
                continue
            self._ready.append(
                Delivery(
                    message=decoded.message,
                    queue=self._queue,
                    attempt=decoded.attempt,
                    receipt=seq,
                    deferrals=decoded.deferrals,
                    death=decoded.death,
                    history=decoded.history,
                )
            )

    async def _adopt(self, db: Connection, seq: int, reason: str) -> None:
        """Somebody else's row: a dead letter, its bytes untouched."""
        message = Message(id=str(uuid.uuid4()), body=b"", accepted_at=datetime.now(UTC))
        death = wire.encode_death(
            Death(
                failure=Failure(reason=reason, error_class="MessageDecodeError"),
                queue=origin_queue(self._queue),
                attempts=1,
                died_at=datetime.now(UTC),
            )
        )
        await db.execute(
            "update forebay_message set owner = null, queue = %s, headers = %s where seq = %s",
            (
                dead_letter_queue(origin_queue(self._queue)),
                orjson.dumps(wire.encode(message) | death).decode(),
                seq,
            ),
        )

    async def _reap(self, db: Connection) -> None:
        """Hand back what owners hold whose sessions have ended."""
        found = await db.execute("select distinct owner from forebay_message where owner is not null")
        for (owner,) in await found.fetchall():
            if owner == self._owner:
                continue
            row = await (await db.execute("select pg_try_advisory_xact_lock(%s)", (owner,))).fetchone()
            if row is not None and row[0]:
                await db.execute("update forebay_message set owner = null where owner = %s", (owner,))
        self._reaped_at = time.monotonic()

    def _hand_out(self, room: int) -> list[Delivery]:
        out = [self._ready.popleft() for _ in range(min(room, len(self._ready)))]
        for d in out:
            assert isinstance(d.receipt, int)
            self._held[d.receipt] = d
        return out

    # ---- settle

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        self._check_open()
        if is_dead_letter_queue(self._queue) and any(isinstance(s, DeadLetter) for s in settlements):
            raise ValueError("what comes from a dead-letter queue cannot be dead-lettered again")
        ours: dict[int, Settlement] = {}
        stale: list[Delivery] = []
        for s in settlements:
            seq = s.delivery.receipt
            assert isinstance(seq, int)
            if self._held.get(seq) is s.delivery:
                del self._held[seq]
                ours[seq] = s
            else:
                stale.append(s.delivery)
        if not ours:
            return stale
        self._news.set()
        try:
            lost = await self._line.do(lambda db: self._apply(db, self._owner, ours), 2 * ANSWER)
        except Late:
            raise BrokerUnavailable("PostgreSQL does not answer; what was not settled comes again") from None
        return stale + lost

    async def _apply(self, db: Connection, owner: int, ours: dict[int, Settlement]) -> list[Delivery]:
        found = await db.execute(
            "select seq from forebay_message where owner = %s and seq = any(%s) for update",
            (owner, list(ours)),
        )
        still = {row[0] for row in await found.fetchall()}
        gone = [seq for seq in still if isinstance(ours[seq], Ack)]
        changed = [self._changed(seq, ours[seq]) for seq in still if not isinstance(ours[seq], Ack)]
        await db.execute("delete from forebay_message where seq = any(%s)", (gone,))
        await db.cursor().executemany(
            "update forebay_message set owner = null, queue = %s, due = %s, headers = %s where seq = %s",
            changed,
        )
        return [s.delivery for seq, s in ours.items() if seq not in still]

    def _changed(self, seq: int, settlement: Settlement) -> tuple[str, int, str, int]:
        """Queue, due time and headers of a row that stays."""
        d = settlement.delivery
        queue, due, message, death = self._queue, 0, d.message, d.death
        attempt, deferrals, history = d.attempt, d.deferrals, d.history
        match settlement:
            case Retry(delay=delay):
                due = _now() + int(min(delay, FAR) * 1e6) if delay > 0 else 0
                attempt += 1
                history = settlement.history
            case Release():
                deferrals += 1
            case DeadLetter(failure=failure, new_id=new_id):
                death = Death(
                    failure=failure,
                    queue=self._queue,
                    attempts=d.attempt,
                    died_at=datetime.now(UTC),
                    original_id=None if new_id is None else message.id,
                    history=settlement.history,
                )
                message = message if new_id is None else replace(message, id=new_id)
                queue, attempt, deferrals, history = dead_letter_queue(self._queue), 1, 0, ()
            case Ack():
                raise AssertionError("an acknowledged row does not stay")
        headers = wire.encode(message, attempt=attempt, deferrals=deferrals, death=death, history=history)
        return queue, due, _json(headers), seq

    # ---- close

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed(f"the subscription to {self._queue!r} is closed")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.set()

        async def hand_back(db: Connection) -> None:
            await db.execute("update forebay_message set owner = null where owner = %s", (self._owner,))

        try:
            await self._line.do(hand_back, 1.0)
        except (Late, BrokerUnavailable):
            pass  # the end of the session does the same
        await self._line.close()


async def _nothing(_: Connection) -> None: ...


def _now() -> int:
    return time.time_ns() // 1_000


def _row(queue: str, m: Message) -> tuple[str, int, int, str, bytes]:
    """
    Raises:
        PublishRejected
    """
    if len(m.body) > MAX_BODY:
        raise MessageTooLarge(len(m.body), MAX_BODY)
    due = 0 if m.not_before is None else wire.to_micros(m.not_before)
    try:
        headers = _json(wire.encode(m))
    except TypeError as error:
        raise PublishRejected(f"the headers are not text: {error}") from error
    return queue, due, wire.to_micros(m.accepted_at), headers, m.body


def _json(headers: dict[str, str]) -> str:
    return orjson.dumps(headers).decode()
