"""Makes the sink that a queue's settings name."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from consumers.handlers import load_handler
from consumers.settings import QueueSettings
from consumers.sinks import ENTRY_POINTS, known_sinks
from consumers.sinks.database import DatabaseSink
from consumers.sinks.python import PythonSink
from consumers.sinks.settings import RelaySettings
from consumers.sinks.table import TableSink
from forebay.brokers.naming import check_queue_name
from forebay.errors import SettingsError
from forebay.sinks import Sink
from forebay.storage.database import Database
from forebay.storage.mapping.store import MappedTable
from forebay.storage.messages import MessageStore

if TYPE_CHECKING:
    from consumers.sinks.forward import Brokers


def make_sink(
    queue: str, settings: QueueSettings, database: Database | None, brokers: Brokers | None = None
) -> Sink:
    """
    The sink for `queue`. The database stays the caller's to dispose of; so does the broker in use.

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
    if settings.sink == "http":
        return _http_sink(queue, settings, database)
    if settings.sink == "broker":
        return _forward_sink(queue, settings, database, brokers)
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


def _http_sink(queue: str, settings: QueueSettings, database: Database | None) -> Sink:
    # Only those who use it load the client library.
    from consumers.sinks.http.client import Client
    from consumers.sinks.http.relay import Relay
    from consumers.sinks.http.sink import HttpSink

    http = settings.http
    if http.url is None:
        raise SettingsError(
            f'queue {queue!r} has sink = "http" but no URL; set queues.{queue}.http.url = "https://host/path"'
        )
    try:
        tls = http.tls.context()
    except SettingsError as error:
        raise SettingsError(f"queues.{queue}.http.{error}") from None
    url = http.url.get_secret_value()
    relay = None
    if isinstance(http, RelaySettings):
        relay = Relay(f"http:{queue}", url, max_answer_bytes=http.max_answer_bytes)
    client = Client(http, url, tls, relay=relay)
    return HttpSink(client, queue, database, connections=http.connections)


def _forward_sink(
    queue: str, settings: QueueSettings, database: Database | None, brokers: Brokers | None
) -> Sink:
    from consumers.sinks.forward import ForwardSink

    forward = settings.forward
    if forward.queue is None:
        raise SettingsError(
            f'queue {queue!r} has sink = "broker" but no target; set queues.{queue}.forward.queue = "other"'
        )
    check_queue_name(forward.queue)
    if brokers is None:
        raise SettingsError(f"queue {queue!r} is forwarded to {forward.queue!r}, but there is no broker here")
    url = forward.broker_url.get_secret_value() if forward.broker_url else brokers.url
    if url == brokers.url and forward.queue == queue and not brokers.drains:
        raise SettingsError(
            f"queue {queue!r} is forwarded to itself; name another queue in queues.{queue}.forward.queue,"
            f" or another broker in queues.{queue}.forward.broker_url"
        )
    opener = brokers.current if url == brokers.url else brokers.other(url)
    return ForwardSink(
        queue, forward.queue, forward, opener, database, source=brokers.source, looking=brokers.looking
    )


def _check_pool(queue: str, settings: QueueSettings, database: Database | None) -> None:
    # With fewer connections the last ones wait for one until it looks like an outage.
    if database is not None and settings.concurrency > database.settings.pool_size:
        raise SettingsError(
            f"queue {queue!r} writes {settings.concurrency} batches at once (concurrency), but there are"
            f" only {database.settings.pool_size} connections;"
            f" set database.pool_size to {settings.concurrency} or more"
        )
