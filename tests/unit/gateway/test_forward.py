"""/v1/forward/{target}/{path}: what is kept of a request, and what its sender is told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from forebay.brokers.api import Delivery
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.forwarding import METHOD, TARGET
from forebay.ids import new_id
from forebay.message import Message
from forebay.storage.answers import KeptAnswer, keep
from forebay.storage.database import Database
from forebay.storage.once import claim
from forebay.storage.schema import migrate
from gateway.forward.endpoint import Target
from gateway.keys_file import changing, make
from gateway.queues import QueueRegistry
from tests.unit.gateway.support import Running, running
from tests.waiting import until


@asynccontextmanager
async def forwarding(database: Any = None, **target: Any) -> AsyncIterator[Running]:
    target = {"queue": "billing", "methods": ("POST", "PUT", "PATCH", "DELETE"), **target}
    queues = QueueRegistry(["orders", "billing"])
    async with running(queues=queues, database=database, targets={"billing": Target(**target)}) as gateway:
        yield gateway


@pytest.fixture
def own(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path / 'f.db'}")
    migrate(made)
    return made


@pytest.fixture
def opened(tmp_path: Path, own: Database) -> Callable[[], Database]:
    return lambda: Database(f"sqlite:///{tmp_path / 'f.db'}")


def answered(
    own: Database,
    message: Message,
    status: int = 201,
    body: bytes = b"made",
    *,
    done: bool = True,
    complete: bool = True,
) -> None:
    """As a consumer leaves it when the service has answered."""
    answer = KeptAnswer(
        id=message.id, destination="http:billing", status=status, body=body, complete=complete,
        headers={"content-type": "application/x-made", "location": "/invoices/1"},
        digest=hashlib.sha256(message.body).digest(), answered_at=datetime.now(UTC),
    )  # fmt: skip
    with own.begin() as connection:
        if done:
            claim(
                connection, "http:billing",
                [Delivery(message=message, queue="billing", attempt=1, receipt=None)],
            )  # fmt: skip
        keep(connection, [answer])


async def first_message(gateway: Running) -> Message:
    await until(lambda: bool(gateway.broker.messages))
    return gateway.broker.messages[0]


async def test_a_request_is_kept_as_it_was_sent() -> None:
    async with forwarding(keep_headers=("accept", "x-request-id")) as gateway:
        answer = await gateway.client.patch(
            "/v1/forward/billing/a%20b/x;v=1?q=%2F..%2F&r=a+b",
            content=b"\x00\xff",
            headers={
                "Content-Type": "application/x-thing", "Content-Encoding": "br", "Accept": "text/csv",
                "Authorization": "Bearer theirs", "Cookie": "session=theirs", "X-Other": "x",
            },
        )  # fmt: skip

    [message] = gateway.broker.queues["billing"]
    assert answer.status_code == 202
    assert answer.json()["queue"] == "billing"
    assert answer.headers["forebay-message-id"] == answer.json()["id"] == message.id
    assert (message.body, message.content_type) == (b"\x00\xff", "application/x-thing")
    assert message.headers == {
        METHOD: "PATCH",
        TARGET: "/a%20b/x;v=1?q=%2F..%2F&r=a+b",
        "accept": "text/csv",
        "content-encoding": "br",
    }


async def test_a_compressed_body_is_not_touched() -> None:
    import gzip

    body = gzip.compress(b"x" * 1000)
    async with forwarding() as gateway:
        await gateway.client.post("/v1/forward/billing", content=body, headers={"Content-Encoding": "gzip"})

    [message] = gateway.broker.messages
    assert message.body == body
    assert message.headers == {METHOD: "POST", TARGET: "", "content-encoding": "gzip"}


@pytest.mark.parametrize(
    "path",
    [
        "/../x",
        "/%2e%2e/x",
        "/a/..;/x",
        "//evil.test/x",
        "/http://evil.test/",
        "/a%2f..%2fx",
        "/a%5cb",
        "/%252e%252e/",
    ],
)
async def test_path_tricks_are_answered_400_and_nothing_is_stored(path: str) -> None:
    async with forwarding() as gateway:
        answer = await gateway.raw(
            b"POST /v1/forward/billing%s HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n" % path.encode()
        )

    assert (answer.status, answer.problem["type"]) == (400, "/problems/invalid-request")
    assert not gateway.broker.messages


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/forward/billing/x", 405),
        ("OPTIONS", "/v1/forward/billing/x", 405),
        ("POST", "/v1/forward/biling/x", 404),
        ("POST", "/v1/forward/", 404),
        ("POST", "/v1/forward%2Fbilling/x", 400),
        ("POST", "/v1/forward/billing/" + "x" * 8_001, 414),
    ],
)
async def test_what_cannot_be_forwarded_is_said(method: str, path: str, status: int) -> None:
    async with forwarding() as gateway:
        answer = await gateway.raw(
            b"%s %s HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n" % (method.encode(), path.encode())
        )

    assert answer.status == status
    assert ("allow" in answer.headers) == (status == 405)
    assert not gateway.broker.messages


async def test_get_is_forwarded_where_it_is_allowed() -> None:
    async with forwarding(methods=("GET",)) as gateway:
        answer = await gateway.client.get("/v1/forward/billing/x")

    assert answer.status_code == 202
    assert gateway.broker.messages[0].headers[METHOD] == "GET"


async def test_one_key_at_two_addresses_is_two_requests() -> None:
    async with forwarding() as gateway:
        key = {"Idempotency-Key": "k"}
        answers = [
            await gateway.client.request(method, f"/v1/forward/billing/{path}", headers=key)
            for method, path in (("POST", "pay"), ("POST", "pay"), ("POST", "refund"), ("PUT", "pay"))
        ]

    assert [a.json()["duplicate"] for a in answers] == [False, True, False, False]
    assert len({a.json()["id"] for a in answers}) == len(gateway.broker.messages) == 3


async def test_with_all_in_order_the_target_is_the_ordering_key() -> None:
    async with forwarding(one_by_one=True) as gateway:
        await gateway.client.post("/v1/forward/billing/x", headers={"Forebay-Ordering-Key": "theirs"})

    assert gateway.broker.messages[0].key == "billing"


async def test_when_nothing_could_be_stored_it_says_so() -> None:
    async with forwarding(wait=10.0) as gateway:
        gateway.broker.failures.append(BrokerUnavailable("refused"))
        answer = await gateway.client.post("/v1/forward/billing/x")

    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/broker-unavailable")


def test_a_credential_is_never_among_what_is_kept() -> None:
    async def start() -> None:
        async with forwarding(keep_headers=("authorization",)):
            pass

    with pytest.raises(SettingsError, match=r"forward\.billing\.keep_headers names 'authorization'"):
        asyncio.run(start())


def two_keys(path: Path) -> dict[str, str]:
    """API keys: "a" may use the target's queue, "b" another one."""
    keys = {}
    with changing(path) as kept:
        for name, queues in (("a", ["billing"]), ("b", ["orders"])):
            keys[name], record = make(name, queues=queues)
            kept.append(record)
    return keys


async def test_a_key_may_forward_where_it_may_use_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = two_keys(path)
    targets = {"billing": Target(queue="billing", methods=("POST",))}
    async with running(queues=QueueRegistry(["billing"]), targets=targets, keys_file=path) as gateway:
        answers = [
            await gateway.client.post(
                f"/v1/forward/{target}/x", headers={"Authorization": f"Bearer {keys[name]}"}
            )
            for name, target in (("a", "billing"), ("b", "billing"), ("b", "biling"))
        ]
        nobody = await gateway.client.post("/v1/forward/billing/x")

    assert [a.status_code for a in (*answers, nobody)] == [202, 403, 403, 401]
    assert len(gateway.broker.messages) == 1
    assert "authorization" not in gateway.broker.messages[0].headers


async def test_an_answer_is_shown_to_keys_for_its_queue_only(
    tmp_path: Path, own: Database, opened: Any
) -> None:
    path = tmp_path / "keys.json"
    keys = two_keys(path)
    message = Message(id=new_id(), body=b"", accepted_at=datetime.now(UTC))
    answered(own, message)
    async with running(database=opened, keys_file=path) as gateway:
        answers = [
            await gateway.client.get(
                f"/v1/messages/{message.id}{what}", headers={"Authorization": f"Bearer {keys[name]}"}
            )
            for name in ("a", "b")
            for what in ("", "/answer")
        ]

    assert [a.status_code for a in answers] == [200, 201, 404, 404]


# ---- the service's answer


async def test_an_answer_in_time_is_the_services_own(own: Database, opened: Any) -> None:
    async with forwarding(opened, wait=20.0) as gateway:
        sending = asyncio.create_task(gateway.client.post("/v1/forward/billing/x"))
        message = await first_message(gateway)
        answered(own, message)
        answer = await sending

    assert (answer.status_code, answer.content) == (201, b"made")
    assert answer.headers["content-type"] == "application/x-made"
    assert answer.headers["location"] == "/invoices/1"
    assert answer.headers["forebay-message-id"] == message.id
    assert "preference-applied" not in answer.headers


async def test_a_refusal_is_the_services_own_too(own: Database, opened: Any) -> None:
    async with forwarding(opened, wait=20.0) as gateway:
        sending = asyncio.create_task(gateway.client.post("/v1/forward/billing/x"))
        answered(own, await first_message(gateway), 422, b"no such customer", done=False)
        answer = await sending

    assert (answer.status_code, answer.content) == (422, b"no such customer")


async def test_sent_again_with_its_key_the_answer_is_given_again(own: Database, opened: Any) -> None:
    async with forwarding(opened, wait=20.0) as gateway:
        key = {"Idempotency-Key": "k"}
        sending = asyncio.create_task(gateway.client.post("/v1/forward/billing/x", headers=key))
        answered(own, await first_message(gateway))
        first, again = await sending, await gateway.client.post("/v1/forward/billing/x", headers=key)

    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")


async def test_an_answer_that_comes_later_is_kept_for_who_asks(own: Database, opened: Any) -> None:
    async with forwarding(opened) as gateway:
        sent = await gateway.client.post("/v1/forward/billing/x")
        early = await gateway.client.get(f"{sent.headers['location']}/answer")
        answered(own, gateway.broker.messages[0])
        status = (await gateway.client.get(sent.headers["location"])).json()
        late = await gateway.client.get(status["answer"]["href"])

    assert (early.status_code, early.json()["type"]) == (404, "/problems/no-answer")
    assert (status["state"], status["answer"]["status"]) == ("done", 201)
    assert (late.status_code, late.content) == (201, b"made")
    assert late.headers["forebay-message-id"] == sent.json()["id"]


async def test_of_an_answer_that_was_too_long_the_status_is_told(own: Database, opened: Any) -> None:
    async with forwarding(opened) as gateway:
        sending = asyncio.create_task(
            gateway.client.post("/v1/forward/billing/x", headers={"Prefer": "wait=20"})
        )
        answered(own, await first_message(gateway), 200, b"", complete=False)
        answer = await sending
        kept = await gateway.client.get(f"{answer.headers['location']}/answer")

    assert (answer.status_code, answer.json()["state"]) == (202, "done")
    assert answer.headers["preference-applied"] == "wait=20"
    assert (kept.status_code, kept.json()["type"]) == (404, "/problems/no-answer")


async def test_without_an_answer_in_time_it_is_a_202(opened: Any) -> None:
    async with forwarding(opened, wait=0.2) as gateway:
        answer = await gateway.client.post("/v1/forward/billing/x")

    assert (answer.status_code, answer.json()["state"]) == (202, "accepted")
    assert "preference-applied" not in answer.headers


async def test_answers_to_many_at_once_are_all_given(
    own: Database, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.waiting.ANSWERS", 7)
    async with forwarding(opened, wait=25.0) as gateway:
        sending = [
            asyncio.create_task(gateway.client.post("/v1/forward/billing/x", content=b"%d" % n))
            for n in range(30)
        ]
        await until(lambda: len(gateway.broker.messages) == 30)
        for message in gateway.broker.messages:
            answered(own, message, 200, b"to " + message.body)
        answers = await asyncio.gather(*sending)

    assert [a.content for a in answers] == [b"to %d" % n for n in range(30)]


async def test_nothing_is_known_of_a_strange_id(opened: Any) -> None:
    async with forwarding(opened) as gateway:
        answers = [await gateway.client.get(f"/v1/messages/{id}/answer") for id in (new_id(), "x")]

    assert [a.status_code for a in answers] == [404, 400]


async def test_what_is_refused_before_it_has_an_id_is_answered_so() -> None:
    async with forwarding() as gateway:
        answer = await gateway.client.post(
            "/v1/forward/billing/x", headers={"Forebay-Delay": "30s", "Forebay-TTL": "5s"}
        )

    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-header")
    assert "forebay-message-id" not in answer.headers


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async"])
async def test_a_sender_need_not_wait(opened: Any, prefer: str) -> None:
    async with forwarding(opened, wait=25.0) as gateway:
        answer = await gateway.client.post("/v1/forward/billing/x", headers={"Prefer": prefer})

    assert (answer.status_code, "state" in answer.json()) == (202, False)


async def test_respond_async_with_a_wait_is_that_wait(own: Database, opened: Any) -> None:
    async with forwarding(opened) as gateway:
        sending = asyncio.create_task(
            gateway.client.post("/v1/forward/billing/x", headers={"Prefer": "respond-async, wait=20"})
        )
        answered(own, await first_message(gateway))

        assert (await sending).status_code == 201


async def test_a_head_is_answered_without_a_body(own: Database, opened: Any) -> None:
    async with forwarding(opened, wait=20.0, methods=("HEAD",)) as gateway:
        sending = asyncio.create_task(gateway.client.head("/v1/forward/billing/x"))
        answered(own, await first_message(gateway), 200, b"")
        answer = await sending

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/x-made"


async def test_it_is_counted_what_senders_get_and_how_many_wait(own: Database, opened: Any) -> None:
    async with forwarding(opened, wait=20.0) as gateway:
        sending = asyncio.create_task(gateway.client.post("/v1/forward/billing/x"))
        message = await first_message(gateway)
        await until(lambda: gateway.registry.get_sample_value("forebay_gateway_waiting") == 1)
        answered(own, message)
        await sending
        await gateway.client.post("/v1/forward/billing/x", headers={"Prefer": "wait=0"})

        assert gateway.registry.get_sample_value("forebay_gateway_waiting") == 0
        for outcome in ("answered", "accepted"):
            labels = {"target": "billing", "outcome": outcome}
            assert gateway.registry.get_sample_value("forebay_gateway_forwarded_total", labels) == 1
