"""Makes the sink that a queue's settings name."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import cast

from consumers.handlers import load_handler
from consumers.settings import QueueSettings
from consumers.sinks import ENTRY_POINTS, known_sinks
from consumers.sinks.database import DatabaseSink
from consumers.sinks.python import PythonSink
from consumers.sinks.table import TableSink
from forebay.errors import SettingsError
from forebay.sinks import Sink
from forebay.storage.database import Database
from forebay.storage.mapping.store import MappedTable
from forebay.storage.messages import MessageStore


def make_sink(queue: str, settings: QueueSettings, database: Database | None) -> Sink:
    """
    The sink for `queue`. The database stays the caller's to dispose of.

    Raises:
        SettingsError: the sink does not exist, or lacks something that it needs.
    """
    if settings.handler is not None:
        handler = load_handler(settings.handler)
        if handler.takes_db and database is None:
            raise SettingsError(
                f"handler {settings.handler!r} of queue {queue!r} takes a database connection, but there is"
                " no database; set database.url (FOREBAY_DATABASE__URL=sqlite:///forebay-data/forebay.db)"
            )
        if handler.takes_db:
            _check_pool(queue, settings, database)
        return PythonSink(handler, queue, database, threads=settings.concurrency)
    if settings.sink == "python":
        raise SettingsError(
            f'queue {queue!r} has sink = "python" but no handler; add handler = "package.module:function"'
        )
    if settings.sink == "database":
        if database is None:
            raise SettingsError(
                f"queue {queue!r} is stored in a database, but there is none; set database.url"
                " (FOREBAY_DATABASE__URL=postgresql://user:password@host/name), or give the queue a handler"
            )
        _check_pool(queue, settings, database)
        store = MessageStore(database, payload=database.settings.payload)
        return DatabaseSink(database, store, threads=settings.concurrency)
    if settings.sink == "table":
        if settings.table is None:
            raise SettingsError(
                f'queue {queue!r} has sink = "table" but no [queues.{queue}.table]; see docs/sinks.md'
            )
        if database is None:
            raise SettingsError(
                f"queue {queue!r} goes into a table, but there is no database; set database.url"
                " (FOREBAY_DATABASE__URL=postgresql://user:password@host/name)"
            )
        _check_pool(queue, settings, database)
        return TableSink(MappedTable(database, settings.table.spec()), threads=settings.concurrency)
    offered = entry_points(group=ENTRY_POINTS)
    if settings.sink not in offered.names:
        known = known_sinks()
        near = difflib.get_close_matches(settings.sink, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(
            f"queue {queue!r} has sink = {settings.sink!r}, which does not exist{hint}"
            f" (there are: {', '.join(known)})"
        )
    return cast(Sink, offered[settings.sink].load()(queue, settings, database))


def _check_pool(queue: str, settings: QueueSettings, database: Database | None) -> None:
    # With fewer connections the last ones wait for one until it looks like an outage.
    if database is not None and settings.concurrency > database.settings.pool_size:
        raise SettingsError(
            f"queue {queue!r} writes {settings.concurrency} batches at once (concurrency), but there are"
            f" only {database.settings.pool_size} connections;"
            f" set database.pool_size to {settings.concurrency} or more"
        )
