"""POST /v1/queues/{queue}/messages: what is kept, what is answered."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from forebay.brokers.api import Durability, Finding, PublishResult
from forebay.errors import (
    BrokerUnavailable,
    MessageTooLarge,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    QueueFull,
    SettingsError,
)
from forebay.ids import id_from_key
from forebay.message import Message
from gateway.queues import QueueRegistry
from tests.unit.gateway.support import ScriptedBroker, running
from tests.waiting import until


async def test_a_message_is_answered_202_once_it_is_stored() -> None:
    async with running() as gateway:
        answer = await gateway.post(b'{"a": 1}', headers={"Content-Type": "application/json"})

        [message] = gateway.broker.messages
        assert answer.status_code == 202
        assert answer.json() == {
            "id": message.id,
            "queue": "orders",
            "durability": "synced",
            "duplicate": False,
        }
        assert answer.headers["location"] == f"/v1/messages/{message.id}"
        assert uuid.UUID(message.id).version == 7


@pytest.mark.parametrize("body", [b"", b"\x00\xff\xfe", b'{"n": NaN}', b"x" * 300_000])
async def test_the_body_is_kept_as_it_is(body: bytes) -> None:
    async with running() as gateway:
        answer = await gateway.post(body)

        assert answer.status_code == 202
        assert gateway.broker.messages[0].body == body
        assert gateway.broker.messages[0].content_type == "application/octet-stream"


async def test_what_belongs_to_the_message_is_kept_and_credentials_are_not() -> None:
    async with running(keep_headers=("X-Request-Id",)) as gateway:
        await gateway.post(
            headers={
                "Forebay-Meta-Source": "shop",
                "ce-type": "order.created",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "X-Request-Id": "r-1",
                "X-Other": "no",
                "Authorization": "Bearer secret",
                "Cookie": "session=secret",
                "Proxy-Authorization": "Basic secret",
                "Webhook-Signature": "secret",
                "ce-signature": "secret",
            }
        )

        assert gateway.broker.messages[0].headers == {
            "source": "shop",
            "ce-type": "order.created",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-request-id": "r-1",
        }


async def test_ordering_key_delay_and_ttl_reach_the_message() -> None:
    async with running() as gateway:
        await gateway.post(
            headers={"Forebay-Ordering-Key": "customer-42", "Forebay-Delay": "30s", "Forebay-TTL": "15m"}
        )

        [message] = gateway.broker.messages
        assert message.key == "customer-42"
        assert message.not_before == message.accepted_at + timedelta(seconds=30)
        assert message.expires_at == message.accepted_at + timedelta(minutes=15)


async def test_deliver_at_is_a_time_with_its_zone() -> None:
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    async with running() as gateway:
        await gateway.post(headers={"Forebay-Deliver-At": due.isoformat().replace("+00:00", "Z")})
        await gateway.post(headers={"Forebay-Deliver-At": "2020-01-01T00:00:00+01:00"})

        assert [m.not_before for m in gateway.broker.messages] == [due, None]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Idempotency-Key", "with space"),
        ("Idempotency-Key", '""'),
        ("Idempotency-Key", "x" * 256),
        ("Idempotency-Key", "schlüssel"),
        ("Forebay-Ordering-Key", "x" * 256),
        ("Forebay-Delay", "soon"),
        ("Forebay-Delay", "-1"),
        ("Forebay-Delay", "1e9"),
        ("Forebay-Delay", "9" * 400),
        ("Forebay-Deliver-At", "tomorrow"),
        ("Forebay-Deliver-At", "2027-01-31T08:00:00"),
        ("Forebay-Deliver-At", "2027-13-31T08:00:00Z"),
        ("Forebay-Deliver-At", "9999-12-31T23:59:59Z"),
        ("Forebay-Deliver-At", "0001-01-01T00:00:00+23:59"),
        ("Forebay-TTL", "0"),
        ("Forebay-TTL", "x"),
        ("Forebay-Ttl", "x"),
        ("Forebay-Color", "red"),
        ("Forebay-Meta-Authorization", "Bearer x"),
        ("Prefer", "durability=perfect"),
        ("Content-Type", "x" * 300),
    ],
)
async def test_a_bad_header_is_named_and_nothing_is_stored(header: str, value: str) -> None:
    async with running() as gateway:
        answer = await gateway.client.post(
            "/v1/queues/orders/messages", content=b"{}", headers=[(header.encode(), value.encode())]
        )

        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (400, "/problems/invalid-header")
        assert problem["header"].lower() == header.lower()
        assert gateway.broker.messages == []


async def test_contradicting_times_are_refused() -> None:
    async with running() as gateway:
        both = await gateway.post(
            headers={"Forebay-Delay": "1", "Forebay-Deliver-At": "2027-01-31T08:00:00Z"}
        )
        dead = await gateway.post(headers={"Forebay-Delay": "60", "Forebay-TTL": "30"})
        still_room = await gateway.post()

        assert [both.status_code, dead.status_code, still_room.status_code] == [400, 400, 202]


async def test_a_control_header_sent_twice_is_refused() -> None:
    async with running() as gateway:
        answer = await gateway.client.post(
            "/v1/queues/orders/messages",
            content=b"{}",
            headers=[("Forebay-Delay", "1"), ("Forebay-Delay", "2")],
        )

        assert answer.status_code == 400


@pytest.mark.parametrize("headers", [{f"ce-n{n}": "x" for n in range(65)}, {"ce-big": "x" * 17_000}])
async def test_kept_headers_are_bounded(headers: dict[str, str]) -> None:
    async with running() as gateway:
        answer = await gateway.post(headers=headers)

        assert (answer.status_code, answer.json()["type"]) == (431, "/problems/headers-too-large")


async def test_keep_headers_may_not_name_a_credential() -> None:
    with pytest.raises(SettingsError, match="authorization"):
        async with running(keep_headers=("Authorization",)):
            raise AssertionError


@pytest.mark.parametrize("name", ["Idempotency-Key", "Prefer", "Content-Encoding"])
async def test_keep_headers_may_not_name_what_the_gateway_acts_upon(name: str) -> None:
    """It was kept instead of being obeyed: with its idempotency key, a retry became a second message."""
    with pytest.raises(SettingsError, match=name.lower()):
        async with running(keep_headers=(name,)):
            raise AssertionError


# ---- durability


async def test_a_durability_that_is_reached_is_echoed() -> None:
    async with running() as gateway:
        answer = await gateway.post(headers={"Prefer": "respond-async, durability=journaled"})

        assert answer.headers["preference-applied"] == "durability=journaled"
        assert answer.json()["durability"] == "synced"


async def test_a_durability_out_of_reach_is_refused_before_anything_is_stored() -> None:
    async with running() as gateway:
        answer = await gateway.post(headers={"Prefer": "durability=replicated"})

        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (503, "/problems/durability-unavailable")
        assert problem["durability"] == "synced"
        assert gateway.broker.messages == []


async def test_a_broker_below_the_least_durability_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"min_durability is 'journaled'.*'unsynced'"):
        async with running(ScriptedBroker(durability="unsynced")):
            raise AssertionError


async def test_a_queue_below_the_least_durability_stops_the_start_and_is_named() -> None:
    """Somebody else made it, weaker than the broker would."""

    class Weak(ScriptedBroker):
        async def declare(self, queue: str) -> Durability:
            await super().declare(queue)
            return "unsynced"

        async def examine(self, queues: Sequence[str]) -> list[Finding]:
            return [Finding(check="durability", verdict="fail", text=f"{queues[0]} is weak", fix="mend it")]

    with pytest.raises(SettingsError, match=r"queue 'orders'.*'unsynced' \(orders is weak; mend it\)"):
        async with running(Weak()):
            raise AssertionError


async def test_an_answer_below_the_least_durability_is_no_202() -> None:
    async with running() as gateway:
        gateway.broker.failures.append(lambda m: PublishResult(message_id=m.id, durability="unsynced"))
        answer = await gateway.post()

        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/durability-unavailable")
        assert "id" in answer.json()


# ---- outcomes


def refuse(error: PublishError) -> object:
    return lambda message: PublishResult(message_id=message.id, error=error)


@pytest.mark.parametrize(
    ("failure", "status", "name"),
    [
        (BrokerUnavailable("connection refused"), 503, "broker-unavailable"),
        (refuse(QueueFull("10 GiB")), 503, "queue-full"),
        (refuse(PublishRejected("nack")), 503, "publish-refused"),
        (refuse(PublishUnconfirmed("no answer")), 503, "outcome-unknown"),
        (refuse(MessageTooLarge(20, 10)), 413, "body-too-large"),
    ],
)
async def test_a_failed_publish_says_truthfully_what_is_known(
    failure: object, status: int, name: str
) -> None:
    async with running() as gateway:
        gateway.broker.failures.append(failure)  # type: ignore[arg-type]  # as parametrised
        answer = await gateway.post()

        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{name}")
        assert uuid.UUID(answer.json()["id"])
        assert ("retry-after" in answer.headers) == (status == 503)


async def test_a_stalled_broker_is_answered_in_time_with_the_id() -> None:
    async with running(request_timeout=0.1) as gateway:
        gateway.broker.gate.clear()
        answer = await gateway.post()

        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/outcome-unknown")
        gateway.broker.gate.set()
        await until(lambda: len(gateway.broker.messages) == 1)
        assert gateway.broker.messages[0].id == answer.json()["id"]


async def test_what_was_never_sent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(request_timeout=0.2) as gateway:
        gateway.broker.gate.clear()
        first = asyncio.create_task(gateway.post(b"first"))
        await gateway.broker.began.wait()
        second = await gateway.post(b"second")
        assert (second.status_code, second.json()["type"]) == (503, "/problems/not-sent")
        assert (await first).json()["type"] == "/problems/outcome-unknown"
        gateway.broker.gate.set()
        await until(lambda: bool(gateway.broker.messages))

        assert [m.body for m in gateway.broker.messages] == [b"first"]


# ---- idempotency


async def test_an_idempotency_key_gives_the_same_id_everywhere() -> None:
    async with running() as gateway:
        answer = await gateway.post(headers={"Idempotency-Key": "k-1"})

        assert answer.json()["id"] == id_from_key("", "orders", "k-1")


async def test_a_repeated_key_is_answered_from_memory() -> None:
    async with running() as gateway:
        first = await gateway.post(b"x", headers={"Idempotency-Key": "k-1"})
        again = await gateway.post(b"x", headers={"Idempotency-Key": '"k-1"'})

        assert again.json() == first.json() | {"duplicate": True}
        assert len(gateway.broker.messages) == 1


async def test_the_same_key_with_another_body_is_422() -> None:
    async with running() as gateway:
        await gateway.post(b"x", headers={"Idempotency-Key": "k-1"})
        answer = await gateway.post(b"y", headers={"Idempotency-Key": "k-1"})
        elsewhere = await gateway.post(b"y", queue="clicks", headers={"Idempotency-Key": "k-1"})

        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/idempotency-conflict")
        assert elsewhere.status_code == 202
        assert [m.body for m in gateway.broker.messages] == [b"x", b"y"]


async def test_a_concurrent_twin_shares_the_first_ones_outcome() -> None:
    async with running() as gateway:
        gateway.broker.gate.clear()
        first = asyncio.create_task(gateway.post(headers={"Idempotency-Key": "k-1"}))
        await gateway.broker.began.wait()
        twin = asyncio.create_task(gateway.post(headers={"Idempotency-Key": "k-1"}))
        other = await gateway.post(b"other", headers={"Idempotency-Key": "k-1"})
        endpoint = gateway.app.parts
        assert endpoint is not None
        await until(lambda: endpoint.ingest._admission.count == 2)
        gateway.broker.gate.set()
        answers = [await first, await twin]

        assert other.status_code == 422
        assert [a.status_code for a in answers] == [202, 202]
        assert [a.json()["duplicate"] for a in answers] == [False, True]
        assert len(gateway.broker.messages) == 1
        assert endpoint.ingest._admission.count == 0


@pytest.mark.parametrize(
    "failure", [BrokerUnavailable("away"), refuse(QueueFull("full")), refuse(PublishUnconfirmed("?"))]
)
async def test_a_failed_publish_does_not_stop_its_own_retry(failure: object) -> None:
    """The claim on the key is released: the retry is published, under the same id."""
    async with running() as gateway:
        gateway.broker.failures.append(failure)  # type: ignore[arg-type]  # as parametrised
        failed = await gateway.post(headers={"Idempotency-Key": "k-1"})
        retried = await gateway.post(headers={"Idempotency-Key": "k-1"})

        assert [failed.status_code, retried.status_code] == [503, 202]
        assert retried.json()["duplicate"] is False
        assert [m.id for m in gateway.broker.messages] == [failed.json()["id"]]


async def test_a_twin_of_a_stalled_publish_has_its_own_deadline() -> None:
    async with running(request_timeout=0.15) as gateway:
        gateway.broker.gate.clear()
        first = asyncio.create_task(gateway.post(headers={"Idempotency-Key": "k"}))
        await gateway.broker.began.wait()
        twin = await gateway.post(headers={"Idempotency-Key": "k"})

        assert (await first).json()["type"] == "/problems/outcome-unknown"
        assert twin.json()["type"] == "/problems/outcome-unknown"
        gateway.broker.gate.set()
        await until(lambda: bool(gateway.broker.messages))
        again = await gateway.post(headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["duplicate"]) == (202, True)


# ---- which queues


async def test_an_undeclared_queue_is_404_with_the_settings_to_add() -> None:
    async with running() as gateway:
        answer = await gateway.post(queue="order")

        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (404, "/problems/queue-not-found")
        assert 'queue_names = "order"' in problem["detail"]
        assert "FOREBAY_QUEUE_NAMES=order" in problem["detail"]
        assert "Did you mean 'orders'?" in problem["detail"]


async def test_in_development_the_first_message_declares_its_queue() -> None:
    declared: list[str] = []
    queues = QueueRegistry(["orders"], declare_on_first_use=True, on_declared=declared.append)
    async with running(queues=queues) as gateway:
        answers = await asyncio.gather(*(gateway.post(queue="new") for _ in range(3)))

        assert [a.status_code for a in answers] == [202, 202, 202]
        assert declared == ["new"]
        assert len(gateway.broker.queues["new"]) == 3


async def test_in_development_a_look_at_a_queue_that_is_not_there_yet_says_what_makes_it() -> None:
    async with running(queues=QueueRegistry(["orders"], declare_on_first_use=True)) as gateway:
        looked = await gateway.client.get("/v1/queues/order")
        nothing_made = await gateway.client.get("/v1/queues/order")

    assert (looked.status_code, nothing_made.status_code) == (404, 404)
    detail = looked.json()["detail"]
    assert "Did you mean 'orders'? Its first message makes it: POST /v1/queues/order/messages" in detail
    assert "restart" not in detail


async def test_in_development_the_queues_of_an_earlier_run_are_taken_on() -> None:
    broker = ScriptedBroker()
    await broker.declare("old")
    declared: list[str] = []
    queues = QueueRegistry(["orders"], declare_on_first_use=True, on_declared=declared.append)
    async with running(broker, queues=queues):
        assert declared == ["old"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/queues/orders%2Fmessages", 400),
        ("/v1/queues/%6frders/messages", 404),
        ("/v1/queues/orders%2F..%2Fclicks/messages", 400),
        ("/v1/queues/../queues/orders/messages", 400),
        ("/v1/queues//messages", 400),
        ("/v1/queues/orders//messages", 400),
        ("//v1/queues/orders/messages", 400),
        ("/v1/queues/orders/messages/", 404),
        ("/v1/queues/Orders/messages", 400),
        ("/v1/queues/orders.dead/messages", 400),
        ("/v1/queues/%C3%B6rders/messages", 404),
        ("/v1/queues/" + "x" * 64 + "/messages", 400),
        ("/v1/queues/<script>/messages", 400),
    ],
)
async def test_path_tricks_reach_no_queue(path: str, status: int) -> None:
    async with running(queues=QueueRegistry(["orders"], declare_on_first_use=True)) as gateway:
        answer = await gateway.raw(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )

        assert answer.status == status
        assert answer.problem["status"] == status
        assert b"script" not in answer.body
        assert gateway.broker.messages == []


async def test_only_post_sends() -> None:
    async with running() as gateway:
        answer = await gateway.client.get("/v1/queues/orders/messages")

        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_message_has_no_secret_of_its_request() -> None:
    """The repr that may end up in a log hides the body."""
    message = Message(id="a", body=b"secret", accepted_at=datetime.now(UTC))

    assert "secret" not in repr(message)
