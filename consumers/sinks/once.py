"""The once-only record of effects that are outside the database: written right after them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa

from consumers.sinks import NotTried
from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, SinkMisconfigured, SinkUnavailable
from forebay.ids import conflict_id
from forebay.sinks import WriteResult
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.once import claim

T = TypeVar("T")

Beside = Callable[[sa.Connection, Sequence[WriteResult]], None]
"""Records, in the transaction of the connection, what else of these results is to be remembered."""

TRANSIENT_TRIES = 5
"""A transaction that met another one (deadlock, serialization) is run this often before it is an outage."""


class OnceRecord:
    """
    Remembers what a destination outside the database has taken, so that it is not sent again.

    What was handled comes again only if the process dies between the effect and the
    record, or if there is no database: then nothing is remembered beyond a batch.
    Its calls block; they belong in a sink's thread.
    """

    def __init__(self, database: Database | None, destination: str, *, beside: Beside | None = None) -> None:
        self._database = database
        self._destination = destination
        self._beside = beside

    def known(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        """
        What can be said before anything is done: a plain result for each that is to be handled.

        Raises:
            SinkUnavailable, SinkMisconfigured: the database cannot tell.
        """
        database = self._database
        if database is None or not batch:
            return _repeats(batch)

        def ask() -> list[WriteResult]:
            with database.begin() as db:
                savepoint = db.begin_nested()
                results = claim(db, self._destination, batch).results
                savepoint.rollback()
            return results

        return patiently(ask)

    def add(self, handled: Sequence[Delivery], results: Sequence[WriteResult] = ()) -> list[WriteResult]:
        """
        Record these as handled; a duplicate is one that another process recorded meanwhile.

        `results` are of all that was tried, for what is recorded beside.

        Raises:
            SinkUnavailable, SinkMisconfigured: they are not recorded, and will be handled again.
        """
        database = self._database
        if database is None or not (handled or (results and self._beside)):
            return [WriteResult(message_id=d.message.id) for d in handled]

        def record() -> list[WriteResult]:
            with database.begin() as db:
                claimed = claim(db, self._destination, handled).results
                if self._beside is not None:
                    self._beside(db, results)
            return claimed

        return patiently(record)


def patiently(run: Callable[[], T]) -> T:
    """What `run` returns, which is run again when its transaction met another one."""
    for attempt in range(1, TRANSIENT_TRIES + 1):
        try:
            return run()
        except TransientError as error:
            if attempt == TRANSIENT_TRIES:
                raise SinkUnavailable(str(error)) from error
            time.sleep(random.uniform(0.0, 0.05 * 2**attempt))
    raise AssertionError("the last try returns or raises")


def is_new(result: WriteResult) -> bool:
    return result.error is None and not result.duplicate


def about_all(results: list[WriteResult], tried: Sequence[int]) -> list[WriteResult]:
    """
    The results of a call, unless all that those `tried` have to tell is that the destination failed.

    Raises:
        SinkUnavailable, SinkMisconfigured: the first one that was met.
    """
    errors = [results[i].error for i in tried]
    outages = [e for e in errors if isinstance(e, (SinkUnavailable, SinkMisconfigured))]
    if outages and all(isinstance(e, (SinkUnavailable, SinkMisconfigured, NotTried)) for e in errors):
        raise outages[0]
    return results


def _repeats(batch: Sequence[Delivery]) -> list[WriteResult]:
    """As a claim without a record: only what is repeated within the batch is known."""
    first: dict[str, bytes] = {}
    seen: set[str] = set()
    results = []
    for message in (d.message for d in batch):
        result = WriteResult(message_id=message.id)
        if first.setdefault(message.id, message.body) != message.body:
            result.error = IdempotencyConflict(message.id, conflict_id(message.id, message.body))
        else:
            result.duplicate = message.id in seen
        seen.add(message.id)
        results.append(result)
    return results
