"""
The jobs of the consuming writer, applied under `synchronous = normal`.

That skips the fsync, not the atomicity: a power cut may undo the last of these
transactions, each as a whole and in order. A lost lease or ack means a
redelivery, which at-least-once allows; a lost Retry or DeadLetter means that the
message is where it was before. None of them can lose a message, because the copy
and the removal are one transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw
import orjson

from forebay.brokers.api import (
    Ack,
    Attempt,
    DeadLetter,
    Death,
    Delivery,
    Release,
    Retry,
    Settlement,
    all_done,
    first_delivery,
)
from forebay.brokers.sqlite import parking
from forebay.brokers.sqlite.publishing import FutureJob
from forebay.brokers.sqlite.writer import Transaction
from forebay.brokers.wire import (
    HISTORY,
    decode_death,
    decode_history,
    encode_death,
    encode_history,
    from_micros,
)
from forebay.errors import BrokerError
from forebay.message import usual_message

_SELECT = (
    "select s.due, s.seq, s.attempt, s.deferrals, s.death,"
    " m.id, m.key, m.content_type, m.headers, m.accepted_at, m.not_before, m.expires_at, m.body"
    " from slot s join message m on m.seq = s.seq "
)
KEY = 6
"""The column of a message's ordering key in these."""
_HEADERS = 8
TAKE_FRESH = _SELECT + "where s.queue = ? and s.due = 0 and s.seq > ? order by s.seq limit ?"
TAKE_SCHEDULED = _SELECT + "where s.queue = ? and s.due > 0 and s.due <= ? order by s.due, s.seq limit ?"
ANY_READY = "select 1 from slot where queue = ? and due between 0 and ? limit 1"
_OTHERS = "select 1 from owner where queue = ? and id != ? limit 1"
_KEYS_ELSEWHERE = (
    # "cross join" keeps SQLite from turning it round and reading all leases of all queues.
    "select m.key from owner o cross join lease l on l.owner = o.id cross join message m on m.seq = l.seq"
    " where o.queue = ? and o.id != ? and m.key is not null"
)
NEXT_DUE = "select due from slot where queue = ? and due > ? order by due limit 1"

_LEND_FRESH = (
    "insert into lease (owner, seq, attempt, deferrals, death) select ?, seq, attempt, deferrals, death"
    " from slot where queue = ? and due = 0 and seq between ? and ?"
)
_CLEAR_FRESH = "delete from slot where queue = ? and due = 0 and seq between ? and ?"
_LEND_ONE = (
    "insert into lease (owner, seq, attempt, deferrals, death) select ?, seq, attempt, deferrals, death"
    " from slot where queue = ? and due = ? and seq = ?"
)
_CLEAR_ONE = "delete from slot where queue = ? and due = ? and seq = ?"

LONGEST_DELAY = 100 * 366 * 86_400.0
"""A handler may ask for an infinite delay; it must not spoil the settlements beside it."""

_HAND_BACK = (
    "insert into slot (queue, due, seq, attempt, deferrals, death)"
    " select ?, 0, seq, attempt, deferrals + 1, death from lease where owner = ?"
)
_HAND_BACK_ONE = _HAND_BACK + " and seq = ?"
_END_ONE = "delete from lease where owner = ? and seq = ?"


MOST_LOOKED_AT = 5_000
"""Fresh messages that one lease looks through for some whose ordering key is free."""

KEY_PAUSE = 20_000
"""Microseconds until a subscription looks again that found only messages of keys held elsewhere."""


def microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)


def add_owner(tx: Transaction, queue_id: int, process: str, lease: float) -> int:
    tx.db.execute(
        "insert into owner (queue, process, expires_at) values (?, ?, ?)",
        (queue_id, process, tx.now + microseconds(lease)),
    )
    return tx.db.last_insert_rowid()


def has_owner(tx: Transaction, owner: int) -> bool:
    return tx.db.execute("select 1 from owner where id = ?", (owner,)).get is not None


def remove_owner(tx: Transaction, queue_id: int, owner: int) -> int:
    """Hand back what the owner holds, each to its old place; return how many."""
    tx.db.execute(_HAND_BACK, (queue_id, owner))
    returned = tx.db.changes()
    tx.db.execute("delete from lease where owner = ?", (owner,))
    tx.db.execute("delete from owner where id = ?", (owner,))
    if returned:
        tx.ring.add(queue_id)
    return returned


def hand_back_everything(db: apsw.Connection, now: int) -> int:
    """End all leases: for the first to open the file, when their holders are gone. Return how many."""
    returned = 0
    owners: list[tuple[int, int]] = db.execute("select queue, id from owner").fetchall()  # type: ignore[assignment]  # columns are untyped
    if owners:
        db.execute("begin immediate")
        tx = Transaction(db, now)
        returned = sum([remove_owner(tx, queue_id, owner) for queue_id, owner in owners])
        db.execute("commit")
    return returned


@dataclass(frozen=True, slots=True)
class Lent:
    """The result of a Lease job."""

    owner: int
    """A new one if the leases of the old one had been given to others."""
    deliveries: list[Delivery]
    next_due: int | None
    """When the first of the scheduled messages is due, in microseconds; asked when too few were ready."""


class Lease:
    """
    Lend up to `want` messages of one queue to an owner.

    Of an ordering key that another owner holds messages of, nothing is lent: so the
    messages of a key are in one hand at a time, and in their order there. For an ordered
    subscription nothing is lent that is behind a failed message of its key either.
    """

    weight = 0

    def __init__(
        self,
        *,
        queue_id: int,
        queue: str,
        owner: int,
        want: int,
        scheduled_share: int,
        look_first: bool,
        ordered: bool,
        barred: frozenset[str],
        process: str,
        lease: float,
        take: Callable[[object], None],
    ) -> None:
        self.queue_id = queue_id
        self.queue = queue
        self.owner = owner
        self.want = want
        self.scheduled_share = scheduled_share
        """How many of them may be scheduled ones while fresh ones wait: neither may starve the other."""
        self.look_first = look_first
        self.ordered = ordered
        self.barred = barred
        """Keys to lend nothing of, besides those that others hold."""
        self.process = process
        self.lease = lease
        self.deliver = take

    def unknown(self, error: BrokerError) -> object:
        # If it was done, the leases end with this owner, whom the subscription replaces.
        return error

    def look(self, db: apsw.Connection, now: int) -> Lent | None:
        """The answer if there is nothing to take, without the turn to write; else None."""
        if not self.look_first or db.execute(ANY_READY, (self.queue_id, now)).get is not None:
            return None
        if not self.ordered and parking.any_parked(db, self.queue_id):
            return None
        return Lent(self.owner, [], db.execute(NEXT_DUE, (self.queue_id, now)).get)

    def apply(self, tx: Transaction) -> Lent:
        if not has_owner(tx, self.owner):
            self.owner = add_owner(tx, self.queue_id, self.process, self.lease)
        db = tx.db
        barred = self.barred | self._keys_elsewhere(db)
        gate = parking.gate(tx, self.queue_id, barred, key_column=KEY, ordered=self.ordered)
        due = db.execute(TAKE_SCHEDULED, (self.queue_id, tx.now, self.want)).fetchall()
        scheduled = gate.free(due)
        kept_for_fresh = max(self.want - len(scheduled), self.want - self.scheduled_share)
        fresh, passed_over = self._fresh(db, kept_for_fresh, gate)
        del scheduled[self.want - len(fresh) :]
        if scheduled:
            self._lend_each(db, scheduled)
        if fresh and passed_over:
            self._lend_each(db, fresh)
        elif fresh:
            span = (self.queue_id, fresh[0][1], fresh[-1][1])
            db.execute(_LEND_FRESH, (self.owner, *span))
            db.execute(_CLEAR_FRESH, span)
        deliveries = self._deliveries([*scheduled, *fresh])
        next_due = None
        if len(deliveries) < self.want:
            next_due = db.execute(NEXT_DUE, (self.queue_id, tx.now)).get
            if gate.look_again:
                next_due = min(next_due or sys.maxsize, tx.now + KEY_PAUSE)
        return Lent(self.owner, deliveries, next_due)

    def _keys_elsewhere(self, db: apsw.Connection) -> frozenset[str]:
        """The ordering keys of messages that other owners hold."""
        others = (self.queue_id, self.owner)
        if db.execute(_OTHERS, others).get is None:
            return frozenset()
        return frozenset(str(row[0]) for row in db.execute(_KEYS_ELSEWHERE, others))

    def _fresh(
        self,
        db: apsw.Connection,
        want: int,
        gate: parking.Gate,
    ) -> tuple[list[tuple[Any, ...]], bool]:
        """Up to `want` in order of arrival; and whether some were passed over for their key."""
        found: list[tuple[Any, ...]] = []
        looked_at = after = 0
        while len(found) < want and looked_at < MOST_LOOKED_AT:
            size = want - len(found) if not looked_at else max(200, want)
            rows: list[tuple[Any, ...]] = db.execute(TAKE_FRESH, (self.queue_id, after, size)).fetchall()
            looked_at += len(rows)
            found += gate.free(rows)
            if len(rows) < size:
                break
            after = rows[-1][1]
        passed_over = looked_at > len(found)
        del found[want:]
        return found, passed_over

    def _lend_each(self, db: apsw.Connection, rows: list[tuple[Any, ...]]) -> None:
        places = [(self.queue_id, r[0], r[1]) for r in rows]
        db.executemany(_LEND_ONE, [(self.owner, *p) for p in places])
        db.executemany(_CLEAR_ONE, places)

    def _deliveries(self, rows: list[tuple[Any, ...]]) -> list[Delivery]:
        out: list[Delivery] = []
        # One call for all: half the time of one for each.
        headers = orjson.loads(f"[{','.join([row[_HEADERS] or '{}' for row in rows])}]")
        for row, given in zip(rows, headers, strict=True):
            (
                _,
                seq,
                attempt,
                deferrals,
                death,
                id_,
                key,
                content_type,
                _,
                accepted,
                not_before,
                expires,
                body,
            ) = row
            message = usual_message(id_, body, from_micros(accepted), key, given, content_type)
            if not_before is not None:
                message.not_before = from_micros(not_before)
            if expires is not None:
                message.expires_at = from_micros(expires)
            delivery = first_delivery(message, self.queue, seq)
            delivery.attempt = attempt
            delivery.deferrals = deferrals
            if death is not None:
                notes = orjson.loads(death)
                delivery.death = decode_death(notes)
                delivery.history = decode_history(notes.get(HISTORY))
            out.append(delivery)
        return out


class Settle(FutureJob):
    """
    Apply settlements of what one owner holds.

    The result is True, or False if nothing was applied because the owner is gone:
    leases end with their owner, all of them or none.
    """

    __slots__ = ("dead_queue_id", "on_failure", "ordered", "owner", "queue", "queue_id", "settlements")

    def __init__(
        self,
        *,
        queue_id: int,
        queue: str,
        dead_queue_id: int | None,
        owner: int,
        settlements: Sequence[Settlement],
        ordered: bool,
        on_failure: Callable[[int, list[int]], None],
    ) -> None:
        super().__init__()
        self.queue_id = queue_id
        self.queue = queue
        self.dead_queue_id = dead_queue_id
        self.owner = owner
        self.settlements = settlements
        self.ordered = ordered
        self.on_failure = on_failure

    def deliver(self, result: object) -> None:
        if isinstance(result, BrokerError):
            self.on_failure(self.owner, [s.delivery.receipt for s in self.settlements])  # type: ignore[misc]  # ours are numbers
        super().deliver(result)

    def apply(self, tx: Transaction) -> bool:
        if not has_owner(tx, self.owner):
            return False
        gone: list[Delivery] = []
        back: list[tuple[object, ...]] = []
        ended: list[tuple[int, int]] = []
        renamed: list[tuple[str, int]] = []
        failed: list[tuple[str, int]] = []
        heads: list[tuple[str, int]] = []
        buried = buried_bytes = 0
        rest = self.settlements
        if all_done(rest):
            gone, rest = [s.delivery for s in rest], ()
            heads = [(d.message.key, d.receipt) for d in gone if d.attempt > 1 and d.message.key is not None]  # type: ignore[misc]  # ours are numbers
        for s in rest:
            d = s.delivery
            seq = d.receipt
            assert isinstance(seq, int)
            key = d.message.key
            if key is not None:
                if isinstance(s, Retry):
                    failed.append((key, seq))
                elif d.attempt > 1 and not isinstance(s, Release):
                    heads.append((key, seq))
            match s:
                case Ack():
                    gone.append(d)
                    continue
                case Retry(delay=delay, history=history):
                    notes = _notes(d.death, history)
                    due = tx.now + microseconds(min(delay, LONGEST_DELAY)) if delay > 0 else 0
                    back.append((self.queue_id, due, seq, d.attempt + 1, d.deferrals, notes))
                case Release():
                    notes = _notes(d.death, d.history)
                    back.append((self.queue_id, 0, seq, d.attempt, d.deferrals + 1, notes))
                case DeadLetter(failure=failure, new_id=new_id):
                    final = Death(
                        failure=failure,
                        queue=self.queue,
                        attempts=d.attempt,
                        died_at=from_micros(tx.now),
                        original_id=None if new_id is None else d.message.id,
                        history=s.history,
                    )
                    back.append((self.dead_queue_id, 0, seq, 1, 0, _notes(final, ())))
                    buried += 1
                    buried_bytes += len(d.message.body)
                    if new_id is not None:
                        renamed.append((new_id, seq))
            ended.append((self.owner, seq))
        if gone:
            self._forget(tx, gone)
        if back:
            tx.db.executemany("insert into slot values (?, ?, ?, ?, ?, ?)", back)
            tx.db.executemany("delete from lease where owner = ? and seq = ?", ended)
            tx.ring.update({row[0] for row in back})  # type: ignore[misc]  # queue ids, the first column
        if self.ordered and failed:
            parking.park(tx, self.queue_id, failed)
        if heads:
            parking.end(tx, self.queue_id, heads)
        if renamed:
            tx.db.executemany("update message set id = ? where seq = ?", renamed)
        if buried:
            assert self.dead_queue_id is not None
            _count(tx, self.queue_id, -buried, -buried_bytes)
            _count(tx, self.dead_queue_id, buried, buried_bytes)
        return True

    def _forget(self, tx: Transaction, gone: list[Delivery]) -> None:
        seqs: set[int] = {d.receipt for d in gone}  # type: ignore[misc]  # ours are numbers
        first, last = min(seqs), max(seqs)
        if last - first + 1 == len(seqs):  # nobody else's between: the usual case, at half the price
            tx.db.execute(
                "delete from lease where owner = ? and seq between ? and ?", (self.owner, first, last)
            )
            tx.db.execute("delete from message where seq between ? and ?", (first, last))
        else:
            listed = orjson.dumps(list(seqs)).decode()
            tx.db.execute(
                "delete from lease where owner = ? and seq in (select value from json_each(?))",
                (self.owner, listed),
            )
            tx.db.execute("delete from message where seq in (select value from json_each(?))", (listed,))
        _count(tx, self.queue_id, -len(gone), -sum([len(d.message.body) for d in gone]))


def _count(tx: Transaction, queue_id: int, messages: int, size: int) -> None:
    tx.db.execute(
        "update queue set messages = messages + ?, bytes = bytes + ? where id = ?", (messages, size, queue_id)
    )


def _notes(death: Death | None, history: Sequence[Attempt]) -> str | None:
    """What goes into the column `death`, where the previous release reads what it knows of it."""
    notes = {} if death is None else encode_death(death)
    if history:
        notes[HISTORY] = encode_history(history)
    if not notes:
        return None
    # A reason may quote half a surrogate pair; that must not keep the message from its rest.
    try:
        return orjson.dumps(notes).decode()
    except TypeError:
        return orjson.dumps({k: v.encode("utf-8", "replace").decode() for k, v in notes.items()}).decode()


class HandBack(FutureJob):
    """
    Hand back what a failed settlement left on loan. Nobody awaits it.

    Only what the owner still holds: by now others may have it, or the settlement
    was done after all.
    """

    __slots__ = ("on_failure", "owner", "queue_id", "seqs")

    def __init__(
        self, queue_id: int, owner: int, seqs: list[int], on_failure: Callable[[int, list[int]], None]
    ) -> None:
        super().__init__()
        self.queue_id = queue_id
        self.owner = owner
        self.seqs = seqs
        self.on_failure = on_failure

    def deliver(self, result: object) -> None:
        if isinstance(result, BrokerError):
            self.on_failure(self.owner, self.seqs)

    def apply(self, tx: Transaction) -> None:
        tx.db.executemany(_HAND_BACK_ONE, [(self.queue_id, self.owner, seq) for seq in self.seqs])
        tx.db.executemany(_END_ONE, [(self.owner, seq) for seq in self.seqs])
        tx.ring.add(self.queue_id)


class Enter(FutureJob):
    """Register a subscription. The result is its owner id."""

    __slots__ = ("lease", "process", "queue_id")

    def __init__(self, queue_id: int, process: str, lease: float) -> None:
        super().__init__()
        self.queue_id = queue_id
        self.process = process
        self.lease = lease

    def apply(self, tx: Transaction) -> int:
        return add_owner(tx, self.queue_id, self.process, self.lease)


class Leave(FutureJob):
    """End a subscription: what it holds goes back, uncounted."""

    __slots__ = ("owner", "queue_id")

    def __init__(self, queue_id: int, owner: int) -> None:
        super().__init__()
        self.queue_id = queue_id
        self.owner = owner

    def apply(self, tx: Transaction) -> None:
        remove_owner(tx, self.queue_id, self.owner)


class Renew(FutureJob):
    """Extend the leases of owners."""

    __slots__ = ("lease", "owners")

    def __init__(self, owners: Sequence[int], lease: float) -> None:
        super().__init__()
        self.owners = owners
        self.lease = lease

    def apply(self, tx: Transaction) -> None:
        until = tx.now + microseconds(self.lease)
        tx.db.executemany("update owner set expires_at = ? where id = ?", [(until, o) for o in self.owners])


class Reap(FutureJob):
    """
    Take over what dead processes hold, and what was held for too long.

    The result is the names of the dead processes.
    """

    __slots__ = ("is_dead", "own")

    def __init__(self, own: Sequence[int], is_dead: Callable[[str], bool]) -> None:
        super().__init__()
        self.own = frozenset(own)
        self.is_dead = is_dead

    def candidates(self, db: apsw.Connection, now: int) -> tuple[list[tuple[int, int]], set[str]]:
        """Owners (id, queue id) whose leases are to end, and which processes are dead."""
        owners = [
            o for o in db.execute("select id, queue, process, expires_at from owner") if o[0] not in self.own
        ]
        dead = {process for process in {o[2] for o in owners} if self.is_dead(process)}
        return [(o[0], o[1]) for o in owners if o[2] in dead or o[3] < now], dead

    def look(self, db: apsw.Connection, now: int) -> set[str] | None:
        ended, dead = self.candidates(db, now)
        return None if ended else dead

    def apply(self, tx: Transaction) -> set[str]:
        ended, dead = self.candidates(tx.db, tx.now)
        for owner, queue_id in ended:
            remove_owner(tx, queue_id, owner)
        return dead


def look(db: apsw.Connection, now: int, job: object) -> object | None:
    """The answer to a job that turns out to need no write, else None."""
    return job.look(db, now) if isinstance(job, Lease | Reap) else None
