"""What the tests of the http sink share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from consumers.settings import QueueSettings
from consumers.sinks.factory import make_sink
from consumers.sinks.settings import HttpSettings
from forebay.sinks import Sink, WriteResult
from forebay.storage.database import Database


@asynccontextmanager
async def sink_to(url: str, database: Database | None = None, **settings: Any) -> AsyncIterator[Sink]:
    http = HttpSettings.model_validate({"url": url, "timeout": 5.0, **settings})
    sink = make_sink("orders", QueueSettings(sink="http", http=http), database)
    try:
        yield sink
    finally:
        await sink.close()


def only(results: Sequence[WriteResult]) -> Exception | None:
    assert len(results) == 1
    return results[0].error
