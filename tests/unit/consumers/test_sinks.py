from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from consumers.settings import QueueSettings
from consumers.sinks import factory
from consumers.sinks.factory import make_sink
from consumers.sinks.threads import SinkThreads
from forebay import Message
from forebay.errors import SettingsError, SinkUnavailable
from forebay.storage.database import Database
from tests.unit.consumers.fakes import MemorySink


def needs_db(message: Message, db: object) -> None: ...


def other_sink(queue: str, settings: QueueSettings, database: Database | None) -> MemorySink:
    return MemorySink()


def test_the_default_is_the_database(tmp_path: Path) -> None:
    assert (
        make_sink("orders", QueueSettings(), Database(f"sqlite:///{tmp_path}/a.db")).destination == "database"
    )


def test_a_handler_has_a_destination_of_its_queue() -> None:
    sink = make_sink("orders", QueueSettings(handler="json:loads"), None)

    assert sink.destination == "handler:orders"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (QueueSettings(), "set database.url"),
        (QueueSettings(sink="python"), "add handler ="),
        (QueueSettings(handler=f"{__name__}:needs_db"), "takes a database connection.*set database.url"),
        (QueueSettings(sink="databse"), "did you mean 'database'"),
    ],
)
def test_what_is_missing_is_said_with_what_to_write(settings: QueueSettings, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        make_sink("orders", settings, None)


@pytest.mark.parametrize("handler", [None, f"{__name__}:needs_db"])
def test_more_batches_at_once_than_connections_are_refused(tmp_path: Path, handler: str | None) -> None:
    database = Database(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(SettingsError, match=r"set database\.pool_size to 9"):
        make_sink("orders", QueueSettings(handler=handler, concurrency=9), database)


def test_another_package_may_offer_a_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoint(name="other", value=f"{__name__}:other_sink", group="forebay.sinks")
    found: Callable[..., EntryPoints] = lambda group: EntryPoints([offered])  # noqa: E731  # as the real one is called
    monkeypatch.setattr(factory, "entry_points", found)

    assert make_sink("orders", QueueSettings(sink="other"), None).destination == "memory"


async def test_calls_run_in_threads_of_their_own_one_after_the_other() -> None:
    threads = SinkThreads("test")
    names: list[str] = []

    await asyncio.gather(
        *(threads.run(lambda: names.append(threading.current_thread().name)) for _ in range(5))
    )
    threads.close()

    assert names == ["test"] * 5


async def test_a_thread_that_cannot_be_started_is_an_outage_and_started_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = SinkThreads("test")
    calls: list[int] = []
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(SinkUnavailable, match="can't start new thread"):
            await threads.run(calls.append, 1)
    async with asyncio.timeout(5):
        await threads.run(calls.append, 2)
    threads.close()

    assert calls == [2]


async def test_a_cancelled_call_is_abandoned_and_the_next_one_waits_for_it() -> None:
    threads = SinkThreads("test")
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    order: list[str] = []

    def slow() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(5)
        order.append("slow")

    first = asyncio.create_task(threads.run(slow))
    await begun.wait()
    first.cancel()
    second = asyncio.create_task(threads.run(order.append, "second"))
    never = asyncio.create_task(threads.run(order.append, "never"))
    await asyncio.sleep(0)
    never.cancel()
    gate.set()
    await second
    await asyncio.wait({first, never})
    threads.close()

    assert first.cancelled()
    assert order == ["slow", "second"]


async def test_what_is_to_be_done_at_the_end_is_done_in_the_thread() -> None:
    ended = threading.Event()
    threads = SinkThreads("test", at_end=ended.set)
    await threads.run(lambda: None)
    threads.close()
    threads.close()

    assert await asyncio.to_thread(ended.wait, 5)
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(lambda: None)
