from __future__ import annotations

import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from consumers.health import serve_health
from consumers.status import STALLED, QueueStatus
from forebay.errors import SettingsError

FINE = QueueStatus(
    queue="orders",
    broker="embedded queue /queue.db",
    draining=False,
    destination="database",
    state="running",
    paused_by=None,
    pause_reason=None,
    needs_someone=False,
    paused_for=None,
    next_try_in=None,
    rate=None,
    busy_for=0.0,
    stored=7,
    duplicates=0,
    retried=0,
    dead=0,
    released=0,
    restarts=0,
    last_error=None,
)


@asynccontextmanager
async def asking(*queues: QueueStatus) -> AsyncIterator[aiohttp.ClientSession]:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc()
    async with (
        serve_health("127.0.0.1", 0, lambda: queues, registry) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        yield session


async def status(session: aiohttp.ClientSession, path: str) -> int:
    async with session.get(path) as response:
        await response.read()
        return response.status


async def test_it_lives_and_is_ready() -> None:
    async with asking(FINE) as session:
        assert await status(session, "/livez") == 200
        assert await status(session, "/readyz") == 200


async def test_a_paused_consumer_is_ready_and_says_why_it_is_paused() -> None:
    """Restarting it would only make it forget that the destination is down."""
    paused = dataclasses.replace(
        FINE, state="paused", pause_reason="connection refused", next_try_in=float("inf")
    )
    async with asking(paused) as session, session.get("/readyz?verbose") as response:
        answer = await response.json()

    assert response.status == 200
    assert answer["queues"][0]["pause_reason"] == "connection refused"


async def test_who_still_waits_for_database_or_broker_lives_and_is_not_ready() -> None:
    async with asking() as session:
        assert await status(session, "/livez") == 200
        assert await status(session, "/readyz") == 503


@pytest.mark.parametrize(
    "changes", [{"state": "starting"}, {"busy_for": STALLED + 1}], ids=["never connected", "stuck"]
)
async def test_a_consumer_that_does_not_get_on_is_not_ready(changes: dict[str, object]) -> None:
    async with asking(FINE, dataclasses.replace(FINE, **changes)) as session:  # type: ignore[arg-type]  # fields
        assert await status(session, "/readyz") == 503
        assert await status(session, "/livez") == 200


async def test_metrics_are_shown() -> None:
    async with asking(FINE) as session, session.get("/metrics") as response:
        assert "things_total 1.0" in await response.text()


async def test_a_busy_port_is_named_with_the_setting_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port} .*in use.*consumer\.health_port"):
            async with serve_health("127.0.0.1", port, list, CollectorRegistry()):
                pass
