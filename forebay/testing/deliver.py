"""Try a handler without any server: what becomes of one message that it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from consumers.handlers import as_handler, close_runner, load_handler
from consumers.processor import Processor
from consumers.retry import ExponentialBackoff
from forebay.brokers.api import Delivery, Settlement
from forebay.errors import SinkMisconfigured, SinkUnavailable
from forebay.ids import new_id
from forebay.message import Message
from forebay.sinks import WriteResult
from forebay.storage.classify import classify


def deliver(
    handler: Callable[..., Any] | str,
    body: bytes | str | object,
    *,
    headers: Mapping[str, str] | None = None,
    key: str | None = None,
    content_type: str = "application/json",
    message_id: str | None = None,
    attempt: int = 1,
    db: sa.Connection | None = None,
) -> Settlement:
    """
    Call `handler` with one message, as a consumer does; return what the message's fate would be.

    Ack: handled. DeadLetter: it raised Reject. Retry: it raised RetryLater or anything
    unforeseen; `failure` says what and where. Release: it raised Unavailable, the
    queue would pause.

    `body` is bytes, text, or anything that JSON can hold. A handler that takes batches
    gets a batch of one. A handler with a `db` parameter gets `db`, whose tables you
    made, under a savepoint: what a failed call wrote is gone. Without `db` it gets an
    empty SQLite database in memory.
    """
    h = load_handler(handler) if isinstance(handler, str) else as_handler(handler)
    message = Message(
        id=message_id or new_id(),
        body=_bytes(body),
        accepted_at=datetime.now(UTC),
        key=key,
        headers={name.lower(): value for name, value in (headers or {}).items()},
        content_type=content_type,
    )
    delivery = Delivery(message=message, queue="test", attempt=attempt, receipt=None)
    processor = Processor(retry=ExponentialBackoff(), destination="handler:test")
    result = WriteResult(message_id=message.id)
    with ExitStack() as stack:
        stack.callback(close_runner)
        if h.takes_db and db is None:
            engine = sa.create_engine("sqlite://")
            stack.callback(engine.dispose)
            db = stack.enter_context(engine.connect())
        try:
            if db is None:
                h.call([message], None)
            else:
                with db.begin_nested():
                    h.call([message], db)
        except Exception as raised:
            error = classify(raised, db.dialect.name) if db is not None else raised
            if isinstance(error, (SinkUnavailable, SinkMisconfigured)):
                return processor.settle_failed_call([delivery], error, datetime.now(UTC))[0]
            result.error = error
    return processor.settle([delivery], [result], datetime.now(UTC))[0]


def _bytes(body: object) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()
