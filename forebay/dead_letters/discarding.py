"""Dead letters given up for good, with a reason and a name."""

from __future__ import annotations

from collections.abc import Callable

from forebay.dead_letters.sending import pages
from forebay.storage import audit
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore

PAGE = 500


def discard(
    database: Database,
    which: DeadLetterFilter,
    *,
    by: str,
    reason: str = "",
    total: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """
    Mark all that match and are dead `discarded`; return how many that were.

    They stay readable until they are pruned. What dies later is open again. The audit log has
    it from the start, with `total` (how many match) until it is known how many there were.
    """
    store = DeadLetterStore(database)
    total = store.count(which) if total is None else total
    with database.begin() as connection:
        entry = audit.record(
            database, connection, who=by, action="discard", queue=which.queue, selection=which.as_json(),
            count=total, detail=reason,
        )  # fmt: skip
    done = 0
    for records in pages(store, which, size=PAGE, bodies=False):
        changed = store.mark(
            records,
            status="discarded",
            expected="dead",
            discard_reason=reason or None,
            changed_by=by[:200],
        )
        done += changed
        progress(changed)
    if done != total:
        with database.begin() as connection:
            audit.amend(connection, entry, count=done, detail=reason)
    return done
