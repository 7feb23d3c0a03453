"""Where messages are, as far as the database knows: of one, or of many in a single query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from forebay.ids import canonical
from forebay.storage.database import Database
from forebay.storage.tables import answers, dead_letters, messages, processed_messages

State = Literal["stored", "done", "dead", "discarded", "waiting"]

# `resolved` without a row: it arrived, and was pruned since. Open ones first: with one destination dead
# and another one discarded a message is dead.
_OF_STATUS: dict[str, State] = {
    "dead": "dead", "redriving": "waiting", "discarded": "discarded", "resolved": "done",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of a message's life."""

    state: str
    """accepted, retrying, dead, waiting (on its way back from the dead letters), discarded, resolved (a dead
    letter arrived after all), stored, done, or answered with the status that is the `reason`."""
    at: datetime
    attempt: int | None = None
    """Which counted try failed."""
    reason: str | None = None
    destination: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGiven:
    """The answer to a forwarded request, without its body."""

    status: int
    headers: Mapping[str, str]
    complete: bool
    """False: its body was too long to be kept, or broke off."""
    answered_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStatus:
    """What the database knows about one message."""

    id: str
    state: State
    """`waiting`: was dead, and is on its way back to its queue."""
    queue: str | None = None
    """None for what is `done` in a mapped table: the once-only record does not keep it."""
    destination: str | None = None
    """Who handled it, or did not take it."""
    accepted_at: datetime | None = None
    stored_at: datetime | None = None
    """When it was stored, or handled."""
    attempts: int | None = None
    reason: str | None = None
    """Why it is dead."""
    died_at: datetime | None = None
    original_id: str | None = None
    conflicts: tuple[str, ...] | None = None
    """Ids of dead letters that came with this id and other bytes."""
    answer: AnswerGiven | None = None
    """What the service answered, if the message is a forwarded request."""
    digest: str | None = None
    """SHA-256, in hexadecimal, of the body that was handled or answered, where a record of it tells."""
    timeline: tuple[Event, ...] = ()
    """What is known of its life, in order. Failed attempts are known of what was dead once."""


def message_status(database: Database, message_id: str) -> MessageStatus | None:
    """
    The state of a message; None when the database has not seen it.

    Stored comes before done, done before dead: a dead letter that arrived after all
    is not dead, even if nobody has marked it so yet.
    """
    id = canonical(message_id)
    return None if id is None else message_statuses(database, [id]).get(id)


def message_statuses(database: Database, ids: Sequence[str]) -> dict[str, MessageStatus]:
    """The states of those of `ids`, in canonical form, that the database has seen: one query for all."""
    if not ids:
        return {}
    found: dict[str, list[sa.Row[Any]]] = {id: [] for id in ids}
    with database.read() as connection:
        for row in connection.execute(_query(database, list(found))):
            for id in {row.id, row.original_id}:
                if id in found:
                    found[id].append(row)
    return {id: _status(id, rows) for id, rows in found.items() if rows}


_OF_A_QUEUE = frozenset({"handler", "http", "forward"})
"""What stands before a queue's name in the names of destinations."""


def queue_of(destination: str) -> str | None:
    """The queue whose messages go there, where its name tells it: a mapped table's does not."""
    kind, _, rest = destination.partition(":")
    return rest if kind in _OF_A_QUEUE else None


def any_of(database: Database, column: sa.ColumnElement[Any], ids: list[str]) -> sa.ColumnElement[bool]:
    """`column` is one of `ids`, with one parameter however many they are."""
    if database.dialect == "postgresql":
        # As rows, not `= ANY (array)`: the array would be read from its text again for every row.
        array = sa.cast(sa.literal("{" + ",".join(ids) + "}", sa.Text), sa.ARRAY(sa.Uuid(as_uuid=False)))
        return column.in_(sa.select(sa.func.unnest(array)))
    if database.dialect == "mysql":
        return column.in_(ids)  # the driver writes them into the statement
    values = sa.func.json_each(sa.literal("[" + ",".join(f'"{i}"' for i in ids) + "]", sa.Text))
    return column.in_(sa.select(values.table_valued("value").c.value))


def _query(database: Database, ids: list[str]) -> sa.CompoundSelect[Any]:
    """
    One row for each place that knows one of `ids`.

    The dead letters come first: they have all the columns, and so give the NULLs of the others their types.
    """
    d, m, p, a, null = dead_letters.c, messages.c, processed_messages.c, answers.c, sa.null()
    dead = sa.select(
        d.id, d.status.label("kind"), d.queue, d.destination, d.accepted_at, d.died_at.label("at"),
        d.changed_at, d.attempts, d.reason, d.original_id, d.history.label("document"),
        sa.cast(null, sa.LargeBinary).label("digest"),
    )  # fmt: skip
    stored = sa.select(
        m.id, sa.literal_column("'stored'"), m.queue, null, m.accepted_at, m.stored_at, null, m.attempts,
        null, null, null, null,
    )  # fmt: skip
    done = sa.select(
        p.id, sa.literal_column("'done'"), null, p.destination, null, p.processed_at, null, null, null, null,
        null, p.digest,
    )  # fmt: skip
    # The status where the others have their attempts, and why the body is not here as their reason.
    answered = sa.select(
        a.id, sa.literal_column("'answer'"), null, a.destination, null, a.answered_at, null, a.status,
        sa.case((a.complete, null), else_=sa.literal_column("'incomplete'")), null, a.headers, a.digest,
    )  # fmt: skip
    return sa.union_all(
        dead.where(any_of(database, d.id, ids)),
        dead.where(any_of(database, d.original_id, ids)),
        stored.where(any_of(database, m.id, ids)),
        done.where(any_of(database, p.id, ids)),
        answered.where(any_of(database, a.id, ids)),
    )


def _status(id: str, rows: list[sa.Row[Any]]) -> MessageStatus:
    letters = [row for row in rows if row.kind in _OF_STATUS]
    # The same letter twice, if both its ids are asked for.
    letters = list({(x.id, x.destination): x for x in letters}.values())
    letters.sort(key=lambda x: x.at, reverse=True)
    own = sorted((x for x in letters if x.id == id), key=lambda x: list(_OF_STATUS).index(x.kind))
    answer = next((row for row in rows if row.kind == "answer"), None)
    digest = next((row.digest for kind in ("done", "answer") for row in rows if row.kind == kind), None)
    known: dict[str, Any] = {
        "answer": None if answer is None else _answer(answer),
        "digest": None if digest is None else bytes(digest).hex(),
        "id": id,
        "conflicts": tuple(sorted({x.id for x in letters if x.id != id})) or None,
        "timeline": _timeline(rows, own),
    }
    arrived = [row for kind in ("stored", "done") for row in rows if row.kind == kind]
    if arrived:
        row = min((x for x in arrived if x.kind == arrived[0].kind), key=lambda x: x.at)
        return MessageStatus(
            state=row.kind, queue=row.queue or queue_of(row.destination), destination=row.destination,
            accepted_at=row.accepted_at, stored_at=row.at, attempts=row.attempts, **known,
        )  # fmt: skip
    if answer is not None and not letters:
        # It was refused, and is on its way to the dead letters: what is done has a record of it.
        return MessageStatus(
            state="dead",
            queue=queue_of(answer.destination),
            destination=answer.destination,
            reason=f"answered {answer.attempts}",
            **known,
        )
    letter = own[0] if own else letters[0]
    return MessageStatus(
        state=_OF_STATUS[letter.kind], queue=letter.queue, destination=letter.destination,
        accepted_at=letter.accepted_at, attempts=letter.attempts, reason=letter.reason, died_at=letter.at,
        original_id=letter.original_id, **known,
    )  # fmt: skip


def _answer(row: sa.Row[Any]) -> AnswerGiven:
    return AnswerGiven(
        status=row.attempts,
        headers=_json(row.document) or {},
        complete=row.reason is None,
        answered_at=row.at,
    )


def _timeline(rows: list[sa.Row[Any]], letters: list[sa.Row[Any]]) -> tuple[Event, ...]:
    events = []
    accepted = [row.accepted_at for row in rows if row.accepted_at is not None]
    if accepted:
        events.append(Event(state="accepted", at=min(accepted)))
    for letter in letters:
        for attempt in _json(letter.document) or ():
            events.append(
                Event(
                    state="retrying",
                    at=datetime.fromisoformat(attempt["failed_at"]).astimezone(UTC),
                    attempt=attempt["number"],
                    reason=attempt["reason"],
                    destination=letter.destination,
                )
            )
        events.append(Event(state="dead", at=letter.at, reason=letter.reason, destination=letter.destination))
        if letter.kind != "dead":
            state = {"redriving": "waiting"}.get(letter.kind, letter.kind)
            events.append(Event(state=state, at=letter.changed_at, destination=letter.destination))
    events += [
        Event(state=row.kind, at=row.at, destination=row.destination)
        for row in rows
        if row.kind in ("stored", "done")
    ]
    events += [
        Event(state="answered", at=row.at, destination=row.destination, reason=str(row.attempts))
        for row in rows
        if row.kind == "answer"
    ]
    # As they were put, of those at the same moment.
    return tuple(sorted(events, key=lambda event: event.at))


def _json(value: Any) -> Any:
    # In a UNION a database may give JSON as its text.
    return orjson.loads(value) if isinstance(value, (str, bytes)) else value
