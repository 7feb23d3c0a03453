"""Health, metrics, queues, message states and documentation: what operators and people look at."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from forebay.errors import BrokerUnavailable
from forebay.ids import new_id
from gateway import asking
from gateway.health import Health
from gateway.queues import QueueRegistry
from gateway.recent import PAGE, RecentIds
from tests.unit.gateway.support import ScriptedBroker, running
from tests.waiting import until

# ---- health


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Ping:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


async def ready(health: Health) -> bool:
    return all(check.ok for check in await health.checks())


async def test_a_recent_publish_proves_more_than_a_ping() -> None:
    ping, clock = Ping(), Clock()
    health = Health(ping, clock=clock)
    ping.error = BrokerUnavailable("refused")
    health.published()
    clock.now += 1

    assert await ready(health)
    assert ping.calls == 0


async def test_after_a_failure_a_ping_decides() -> None:
    ping, clock = Ping(), Clock()
    health = Health(ping, clock=clock)
    health.published()
    health.failed("no answer")

    assert await ready(health)
    ping.error = BrokerUnavailable("refused")
    clock.now += 2
    assert not await ready(health)


async def test_an_idle_gateway_is_asked_by_ping_and_many_probes_are_one() -> None:
    ping, clock = Ping(), Clock()
    health = Health(ping, clock=clock)
    health.published()
    clock.now += 60
    await asyncio.gather(*(health.checks() for _ in range(10)))

    assert ping.calls == 1


async def test_a_ping_that_hangs_is_not_ready_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.health.PING_TIMEOUT", 0.02)
    health = Health(asyncio.Event().wait)  # type: ignore[arg-type]  # its result is not looked at

    assert not await ready(health)


async def test_readyz_says_why_not() -> None:
    async with running() as gateway:
        fine = await gateway.client.get("/readyz")
        gateway.broker.failures.append(BrokerUnavailable("refused"))
        gateway.broker.ping_error = BrokerUnavailable("connection refused")
        await gateway.post()
        down = await gateway.client.get("/readyz?verbose")
        gateway.broker.ping_error = None
        await gateway.post()
        again = await gateway.client.get("/readyz")
        alive = await gateway.client.get("/livez")

        assert [fine.status_code, down.status_code, again.status_code] == [200, 503, 200]
        assert "connection refused" in down.json()["checks"][1]["detail"]
        assert down.json()["checks"][1]["age"] >= 0
        assert "retry-after" in down.headers
        assert alive.status_code == 200


# ---- metrics


async def test_metrics_count_what_became_of_messages_under_bounded_labels() -> None:
    async with running() as gateway:
        await gateway.post(b"12345", headers={"Idempotency-Key": "k"})
        await gateway.post(b"12345", headers={"Idempotency-Key": "k"})
        for n in range(5):
            await gateway.post(queue=f"made-up-{n}")
        text = (await gateway.client.get("/metrics")).text

        def value(name: str, **labels: str) -> float | None:
            return gateway.registry.get_sample_value(name, labels)

        assert value("forebay_gateway_messages_total", queue="orders", outcome="accepted") == 1
        assert value("forebay_gateway_messages_total", queue="orders", outcome="duplicate") == 1
        assert value("forebay_gateway_body_bytes_total", queue="orders") == 5
        assert value("forebay_gateway_refused_total", problem="queue-not-found") == 5
        assert value("forebay_gateway_publish_seconds_count", queue="orders") == 1
        assert "made-up" not in text
        assert 'outcome="accepted"' in text


def test_a_dead_workers_figures_are_folded_into_the_sum(tmp_path: Path) -> None:
    """Sums never shrink when a worker is replaced, and its files do not pile up."""
    import subprocess
    import sys

    script = """
import os
from prometheus_client import CollectorRegistry
from gateway.metrics import GatewayMetrics
m = GatewayMetrics(CollectorRegistry())
m.messages.labels("orders", "accepted").inc(3)
m.publish_seconds.labels("orders").observe(0.3)
m.in_flight.set(7)
print(os.getpid())
"""
    import os

    from gateway.metrics import MULTIPROCESS_DIR, reap, render

    environment = os.environ | {MULTIPROCESS_DIR: str(tmp_path)}
    pids = [
        int(
            subprocess.run(
                [sys.executable, "-c", script], env=environment, capture_output=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MULTIPROCESS_DIR, str(tmp_path))
        before = render(CollectorRegistry()).decode()
        for pid in pids[:2]:
            reap(str(tmp_path), pid)
        after = render(CollectorRegistry()).decode()

        for text in (before, after):
            assert 'messages_total{outcome="accepted",queue="orders"} 9.0' in text
            assert 'publish_seconds_count{queue="orders"} 3.0' in text
        assert "forebay_gateway_in_flight 21.0" in before
        assert "forebay_gateway_in_flight 7.0" in after
        assert not [name for name in tmp_path.iterdir() for pid in pids[:2] if str(pid) in name.name]


# ---- queues


async def test_queues_are_listed_with_what_the_broker_can_tell() -> None:
    async with running() as gateway:
        await gateway.post()
        listed = (await gateway.client.get("/v1/queues")).json()["queues"]
        one = (await gateway.client.get("/v1/queues/orders")).json()

        assert [queue["name"] for queue in listed] == ["orders", "clicks"]
        assert listed[0] == one
        assert (one["waiting"], one["scheduled"]) == (1, None)


async def test_what_the_broker_cannot_tell_is_what_consumers_reported(tmp_path: Path) -> None:
    from forebay.brokers.api import Share
    from forebay.storage.reports import QueueReport, exchange

    opened = database(tmp_path / "f.db")
    own = opened()
    reports = [
        QueueReport(broker="scripted", url="x://", queue=queue, share=share, depth=None)
        for queue, share in (
            ("orders", Share(in_hand=3, scheduled=2, oldest_age=8.0)),
            ("orders.dead", Share(in_hand=0, scheduled=0)),
        )
    ]
    exchange(own, "host:1", [replace(r, share=replace(r.share, waiting=0)) for r in reports], tidy=True)
    own.dispose()

    async with running(database=opened) as gateway:
        await gateway.post()
        found = (await gateway.client.get("/v1/queues/orders")).json()

    figures = ("waiting", "scheduled", "in_hand", "dead", "oldest_age")
    assert [found[name] for name in figures] == [1, 2, 3, 0, 8.0]
    assert found["reported"] == ["scheduled", "in_hand", "oldest_age", "dead"]
    assert 0 <= found["reported_age"] < 15


async def test_a_figure_that_nobody_tells_is_null_with_the_reason() -> None:
    async with running() as gateway:
        found = (await gateway.client.get("/v1/queues/orders")).json()

    assert (found["in_hand"], found["dead"], found["reported_age"]) == (None, None, None)
    assert "the consumers' reports are in the database: this gateway has no database URL" in found["unknown"]


async def test_started_on_another_broker_it_names_what_was_left(tmp_path: Path) -> None:
    from forebay.brokers.api import Depth, Share
    from forebay.storage.reports import QueueReport, exchange, withdraw

    opened = database(tmp_path / "f.db")
    own = opened()
    left = Depth(waiting=7, scheduled=0, in_hand=0, bytes=None, oldest_age=1.0)
    report = QueueReport(
        broker="rabbit", url="amqp://u:***@h", queue="orders", share=Share(in_hand=0), depth=left
    )
    exchange(own, "host:1", [report], tidy=True)
    withdraw(own, "host:1")
    own.dispose()

    with capture_logs() as logs:
        async with running(database=opened):
            await until(lambda: any("rabbit held 7 messages (orders)" in line["event"] for line in logs))

    (line,) = [line for line in logs if "rabbit held" in line["event"]]
    assert line["setting"] == 'broker.drain = ["amqp://u:***@h"]'


async def test_depth_without_a_broker_is_our_trouble() -> None:
    async with running() as gateway:
        gateway.broker.ping_error = BrokerUnavailable("refused")
        answers = [await gateway.client.get("/v1/queues"), await gateway.client.get("/v1/queues/orders")]

        assert [a.status_code for a in answers] == [503, 503]


async def test_a_client_that_makes_up_names_cannot_fill_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.queues.MAX_FIRST_USE", 2)
    broker, registry = ScriptedBroker(), QueueRegistry([], declare_on_first_use=True)

    assert [await registry.first_use(broker, name) for name in ("a", "b", "c", "a", "Bad")] == [
        True,
        True,
        False,
        True,
        False,
    ]


# ---- states of messages


def test_recent_ids_forget_a_generation_at_a_time() -> None:
    recent, now = RecentIds(2), datetime.now(UTC)
    for name in "abcde":
        recent.add(name, "orders", now, "synced")

    assert [name for name in "abcde" if recent.get(name)] == ["c", "d", "e"]


def test_of_an_id_that_came_twice_the_newest_time_is_told() -> None:
    recent, now = RecentIds(), datetime.now(UTC)
    recent.add("twice", "orders", now, "synced")
    for number in range(2 * PAGE):
        recent.add(f"{number}", "orders", now, "synced")
    recent.add("twice", "orders", now + timedelta(hours=1), "synced")

    found = recent.get("twice")

    assert found is not None
    assert found.at == now + timedelta(hours=1)


def database(path: Path) -> Any:
    from forebay.storage.database import Database
    from forebay.storage.schema import migrate

    def opened() -> Database:
        found = Database(f"sqlite:///{path}")
        migrate(found)
        return found

    return opened


async def test_without_a_database_the_state_is_unavailable_and_sending_works() -> None:
    async with running() as gateway:
        sent = await gateway.post()
        answer = await gateway.client.get(sent.headers["location"])

        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/status-unavailable")
        assert answer.json()["accepted"] is True
        assert "retry-after" in answer.headers
        # Another gateway may have accepted what this one does not know.
        assert "accepted" not in (await gateway.client.get(f"/v1/messages/{new_id()}")).json()


async def test_an_outage_of_the_database_is_logged_when_it_begins_and_when_it_ends() -> None:
    answers: list[Any] = [ValueError("the host is gone"), ValueError("the host is gone"), 1]

    def answer(_: object) -> int:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return int(given)

    questions = asking.Questions(lambda: None)  # type: ignore[arg-type,return-value]  # nobody looks at it
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(asking.NoAnswer):
                await questions.ask(answer)
        assert await questions.ask(answer) == 1
    assert [(line["event"], "the host is gone" in line.get("error", "")) for line in logs] == [
        ("status look-ups fail", True),
        ("status look-ups succeed again", False),
    ]


async def test_what_was_accepted_lately_is_known_before_the_database_has_it(tmp_path: Path) -> None:
    async with running(database=database(tmp_path / "f.db")) as gateway:
        sent = await gateway.post()
        found = await gateway.client.get(sent.headers["location"])
        unknown = await gateway.client.get(f"/v1/messages/{new_id()}")

        assert found.status_code == 200
        assert (found.json()["state"], found.json()["queue"]) == ("accepted", "orders")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/not-seen-yet")
        assert "retry-after" in unknown.headers


async def test_the_databases_word_comes_first(tmp_path: Path) -> None:
    from forebay.brokers.api import Delivery
    from forebay.storage.messages import MessageStore

    opened = database(tmp_path / "f.db")
    async with running(database=opened) as gateway:
        sent = await gateway.post()
        own = opened()
        [message] = gateway.broker.messages
        MessageStore(own).write([Delivery(message=message, queue="orders", attempt=1, receipt=None)])
        own.dispose()
        answer = await gateway.client.get(sent.headers["location"])

        assert answer.json()["state"] == "stored"


async def test_a_database_that_hangs_costs_nobody_more_than_the_look_ups_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "MAX_WAITING", 6)
    release = threading.Event()

    def hang() -> Any:
        release.wait(10)
        raise OSError("gone")

    async with running(database=hang) as gateway:
        parts = gateway.app.parts
        assert parts is not None
        parts.questions._timeout = 0.05
        answers = await asyncio.gather(*(gateway.client.get(f"/v1/messages/{new_id()}") for _ in range(10)))
        sent = await gateway.post()
        release.set()
        await until(lambda: parts.questions._waiting == 0)

        assert {a.status_code for a in answers} == {503}
        assert sent.status_code == 202


# ---- documentation


async def test_the_documentation_works_offline() -> None:
    import re

    async with running() as gateway:
        page = (await gateway.client.get("/docs")).text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert assets
        assert "http://" not in page
        assert "https://" not in page
        for asset in assets:
            assert (await gateway.client.get(asset)).status_code == 200


async def test_the_api_document_has_every_route() -> None:
    async with running() as gateway:
        document = (await gateway.client.get("/openapi.json")).json()

        assert list(document["paths"]) == [
            "/v1/queues/{queue}/messages",
            "/v1/queues/{queue}/batch",
            "/v1/sources/{source}",
            "/v1/forward/{target}/{path}",
            "/v1/messages/{message_id}/answer",
            "/v1/queues",
            "/v1/queues/{queue}",
            "/v1/messages/{message_id}",
            "/livez",
            "/readyz",
        ]
        assert "HTTPValidationError" not in str(document)


async def test_the_document_says_that_a_broken_off_batch_has_results() -> None:
    async with running() as gateway:
        document = (await gateway.client.get("/openapi.json")).json()

        answers = document["paths"]["/v1/queues/{queue}/batch"]["post"]["responses"]
        for status in ("400", "408", "413", "422", "503"):
            schema = answers[status]["content"]["application/problem+json"]["schema"]
            assert {"$ref": "#/components/schemas/BatchProblem"} in schema["allOf"]
