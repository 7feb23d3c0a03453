"""What services answered to forwarded requests: kept for a while, for those who sent them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from forebay.ids import canonical
from forebay.storage.database import Database
from forebay.storage.prune import delete_in_batches
from forebay.storage.states import any_of, queue_of
from forebay.storage.tables import answers as table
from forebay.storage.upsert import upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """One answer, of the request that is the message `id`."""

    id: str
    destination: str
    status: int
    headers: dict[str, str]
    """Those that are worth keeping, under lower-case names."""
    body: bytes
    complete: bool
    """False: the body was longer than is kept, or broke off; then none of it is here."""
    digest: bytes
    """SHA-256 of the request's body."""
    answered_at: datetime

    @property
    def queue(self) -> str:
        """The queue that kept the request."""
        return queue_of(self.destination) or self.destination


def keep(connection: sa.Connection, answers: Sequence[KeptAnswer]) -> None:
    """Keep these; a later answer to the same request takes the place of the one before."""
    upsert(connection, table, [{name: getattr(a, name) for name in table.columns.keys()} for a in answers])  # noqa: SIM118


def answers_to(database: Database, ids: Sequence[str]) -> dict[str, KeptAnswer]:
    """The answers to these requests, ids in canonical form; of others there is none, or none any more."""
    wanted = [id for id in map(canonical, ids) if id is not None]
    if not wanted:
        return {}
    with database.read() as connection:
        rows = connection.execute(sa.select(table).where(any_of(database, table.c.id, wanted))).mappings()
        return {
            row["id"]: KeptAnswer(
                **{**row, "body": bytes(row["body"]), "digest": bytes(row["digest"]),
                   "complete": bool(row["complete"])}
            )
            for row in rows
        }  # fmt: skip


def forget_answers(database: Database, *, older_than: float, batch: int = 500) -> int:
    """Delete answers of more than `older_than` seconds ago; return how many."""
    old = [table.c.answered_at < datetime.now(UTC) - timedelta(seconds=older_than)]
    return sum(delete_in_batches(database, table, old, batch))
