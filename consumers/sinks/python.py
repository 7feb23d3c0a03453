"""A sink that is your own function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, event

from consumers.handlers import Handler, close_runner
from consumers.settings import ONE_BY_ONE
from consumers.sinks import NotTried
from consumers.sinks.database import ping
from consumers.sinks.once import OnceRecord, is_new, patiently
from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import RetryLater, SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import TransientError, classify
from forebay.storage.database import Database
from forebay.storage.once import claim

BUDGET = 2.0
"""
Seconds after which no further message of a batch is begun: a batch of slow messages
must not hold a transaction, or the rest of itself, for minutes.
"""


class HandlerEndedTransaction(RuntimeError):
    """The handler committed or rolled back the transaction that it was lent."""

    def __init__(self) -> None:
        super().__init__("the handler ended its transaction; leave commit and rollback to Forebay")


class _Lent:
    """A connection in the hands of a handler, which may do anything with it but end its transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._in_handler = False
        self.ended = False
        for what in ("commit", "rollback"):
            event.listen(db, what, self._refuse)

    def _refuse(self, _db: Connection) -> None:
        if self._in_handler:
            self.ended = True
            raise HandlerEndedTransaction

    @contextmanager
    def to_handler(self) -> Iterator[None]:
        self._in_handler = True
        try:
            yield
        finally:
            self._in_handler = False
        if self.ended:  # The handler caught our objection.
            raise HandlerEndedTransaction


class PythonSink:
    """
    Calls a handler for each message, and keeps a record of what was handled.

    With a `db` parameter the handler's effect and its once-only record are one
    transaction: a message that comes twice is handled once. A batch is one
    transaction too, with a savepoint for each message, so that one that fails takes
    nothing but its own effect with it.

    Without it the effect is outside, so the record is written right after: what was
    handled comes again only if the process dies in between. Without a database there
    is no record, and a redelivered message is handled again.
    """

    def __init__(
        self,
        handler: Handler,
        queue: str,
        database: Database | None,
        *,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.destination = f"handler:{queue}"
        self.batch_size = None if handler.takes_batch else ONE_BY_ONE
        """How many to take together where the settings do not say."""
        self._handler = handler
        self._database = database
        self._record = OnceRecord(database, self.destination)
        self._clock = clock
        self._threads = SinkThreads(f"forebay-handler-{queue}", threads, at_end=close_runner)

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._threads.run(self._write, batch)

    async def probe(self) -> None:
        if self._database is not None:
            await self._threads.run(ping, self._database)

    async def close(self) -> None:
        self._threads.close()

    # ---- in the sink's thread

    def _write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        if not self._handler.takes_db:
            return self._write_outside(batch)
        return patiently(lambda: self._write_in_transaction(batch))

    def _write_in_transaction(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        assert self._database is not None
        try:
            with self._database.begin() as db:
                lent = _Lent(db)
                return self._each(batch, lambda group: self._handle_in(db, lent, group))
        except (SinkUnavailable, SinkMisconfigured, TransientError):
            raise
        except Exception as error:
            # One of them spoiled the transaction for all, beyond what a savepoint mends: it ended it, a
            # deferred constraint failed at COMMIT, or the handler kept a database error to itself.
            return self._divide(batch, error, self._write_in_transaction)

    def _write_outside(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        results = self._record.known(batch)
        todo = [i for i, r in enumerate(results) if is_new(r)]
        handled: list[Delivery] = []
        try:
            told = self._each([batch[i] for i in todo], lambda group: self._handle_outside(group, handled))
        finally:
            # Also when the rest of the batch met an outage: what is done must not be done again.
            self._record.add(handled)
        for i, result in zip(todo, told, strict=True):
            results[i] = result
        return results

    def _each(
        self, batch: Sequence[Delivery], handle: Callable[[Sequence[Delivery]], list[WriteResult]]
    ) -> list[WriteResult]:
        """The whole batch in one call if the handler takes batches; else one by one, within the budget."""
        if self._handler.takes_batch:
            return handle(batch) if batch else []
        until = self._clock() + BUDGET
        results: list[WriteResult] = []
        for i, delivery in enumerate(batch):
            if i and self._clock() >= until:
                rest = batch[i:]
                return results + [WriteResult(message_id=d.message.id, error=NotTried()) for d in rest]
            results += handle([delivery])
        return results

    def _handle_in(self, db: Connection, lent: _Lent, group: Sequence[Delivery]) -> list[WriteResult]:
        savepoint = db.begin_nested()
        try:
            results = claim(db, self.destination, group).results
            new = [d.message for d, r in zip(group, results, strict=True) if is_new(r)]
            if new:
                with lent.to_handler():
                    self._handler.call(new, db)
        except Exception as raised:
            error = classify(raised, db.dialect.name)
            if isinstance(error, (SinkUnavailable, SinkMisconfigured, TransientError)):
                raise error from raised
            if lent.ended:
                # SQLAlchemy takes the transaction for ended while the server's is open: never lend it again.
                db.invalidate()
                raise HandlerEndedTransaction from raised
            savepoint.rollback()
            return self._divide(group, error, lambda half: self._handle_in(db, lent, half))
        savepoint.commit()
        return results

    def _handle_outside(self, group: Sequence[Delivery], handled: list[Delivery]) -> list[WriteResult]:
        try:
            self._handler.call([d.message for d in group], None)
        except (SinkUnavailable, SinkMisconfigured):
            raise
        except Exception as error:
            return self._divide(group, error, lambda half: self._handle_outside(half, handled))
        handled += group
        return [WriteResult(message_id=d.message.id) for d in group]

    def _divide(
        self,
        group: Sequence[Delivery],
        error: Exception,
        handle: Callable[[Sequence[Delivery]], list[WriteResult]],
    ) -> list[WriteResult]:
        """
        Find out which message of a failed batch it was, by halves.

        RetryLater is about the batch as a whole, and so is taken for all of it.
        """
        if len(group) == 1 or isinstance(error, RetryLater):
            return [WriteResult(message_id=d.message.id, error=error) for d in group]
        middle = len(group) // 2
        return handle(group[:middle]) + handle(group[middle:])
