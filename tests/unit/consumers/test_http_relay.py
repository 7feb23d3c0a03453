"""Requests that were kept: sent as they came, below the base URL, with the answer kept for who asks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from consumers.settings import QueueSettings
from consumers.sinks.factory import make_sink
from consumers.sinks.settings import TargetSettings
from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.forwarding import METHOD, TARGET
from forebay.sinks import Sink
from forebay.storage.answers import answers_to
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.storage.states import message_status
from tests.servers.receiver import Receiver, always
from tests.unit.consumers.http import only
from tests.unit.storage.deliveries import delivery


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/a.db")
    migrate(made)
    yield made
    made.dispose()


@asynccontextmanager
async def sink_to(url: str, database: Database | None = None, **settings: Any) -> AsyncIterator[Sink]:
    target = TargetSettings.model_validate({"url": url, "timeout": 5.0, **settings})
    sink = make_sink("billing", QueueSettings(sink="http", http=target.as_http()), database)
    try:
        yield sink
    finally:
        await sink.close()


def request(
    method: str = "POST", target: str = "/invoices?draft=1", body: bytes = b"{}", **more: Any
) -> Delivery:
    headers: Mapping[str, str] = more.pop("headers", {})
    return delivery(body, queue="billing", headers={METHOD: method, TARGET: target, **headers}, **more)


async def test_a_request_arrives_as_it_was_sent(receiver: Receiver) -> None:
    sent = request(
        "PATCH", "/a%20b/x;v=1?q=%2F..%2F&r=a+b", b"\x00\xff",
        content_type="application/x-thing",
        headers={"accept": "text/csv", "content-encoding": "aes128gcm", "other": "x"},
    )  # fmt: skip
    async with sink_to(
        f"http://127.0.0.1:{receiver.port}/base/", headers=["Authorization: Bearer ours"]
    ) as sink:
        assert only(await sink.write([sent])) is None

    [(got, body)] = receiver.requests
    assert (got.method, got.raw_path, body) == ("PATCH", "/base/a%20b/x;v=1?q=%2F..%2F&r=a+b", b"\x00\xff")
    assert {
        n: got.headers.get(n)
        for n in ("Accept", "Content-Encoding", "Content-Type", "other", "Authorization")
    } == {
        "Accept": "text/csv",
        "Content-Encoding": "aes128gcm",
        "Content-Type": "application/x-thing",
        "other": None,
        "Authorization": "Bearer ours",
    }
    assert got.headers["Idempotency-Key"] == got.headers["Forebay-Message-Id"] == sent.message.id


async def test_a_get_has_neither_body_nor_content_type(receiver: Receiver) -> None:
    sent = request("GET", "", b"", content_type="application/octet-stream")
    async with sink_to(receiver.url) as sink:
        await sink.write([sent])

    [(got, _)] = receiver.requests
    assert (got.method, got.path, got.headers.get("Content-Type")) == ("GET", "/take", None)


@pytest.mark.parametrize(
    ("method", "target"),
    [("POST", "/../x"), ("POST", "//evil.test/"), ("POST", "http://evil.test/"), ("POST", "@evil.test/"),
     ("POST", "/%2e%2e/x"), ("CONNECT", "/x"), ("get\r\nX: y", "/x")],
)  # fmt: skip
async def test_what_others_put_on_the_broker_cannot_lead_out_of_the_base(
    receiver: Receiver, method: str, target: str
) -> None:
    async with sink_to(receiver.url) as sink:
        error = only(await sink.write([request(method, target)]))

    assert isinstance(error, MessageRejected)
    assert error.error_class == "not-a-request"
    assert not receiver.requests


async def test_the_answer_is_kept_with_the_record_that_it_was_given(
    receiver: Receiver, database: Database
) -> None:
    async def answer(_: web.Request, __: bytes) -> web.StreamResponse:
        return web.Response(
            status=201, body=b"\x00made", content_type="application/x-made",
            headers={"Location": "/invoices/1", "Set-Cookie": "session=ours"},
        )  # fmt: skip

    receiver.answer = answer
    sent = request()
    async with sink_to(receiver.url, database) as sink:
        await sink.write([sent])
        [again] = await sink.write([sent])

    kept = answers_to(database, [sent.message.id])[sent.message.id]
    assert (kept.status, kept.body, kept.complete) == (201, b"\x00made", True)
    assert kept.headers == {"location": "/invoices/1", "content-type": "application/x-made"}
    assert again.duplicate
    assert len(receiver.requests) == 1
    status = message_status(database, sent.message.id)
    assert status is not None
    assert status.state == "done"


@pytest.mark.parametrize("status", [404, 405, 422, 501])
async def test_a_refusal_is_a_dead_letter_and_its_answer_is_kept(
    receiver: Receiver, database: Database, status: int
) -> None:
    """Whoever sends the request has chosen its path: a 404 is about that, and stops nobody else."""
    receiver.answer = always(status, "no such thing")
    sent = request()
    async with sink_to(receiver.url, database) as sink:
        error = only(await sink.write([sent]))

    assert isinstance(error, MessageRejected)
    kept = answers_to(database, [sent.message.id])[sent.message.id]
    assert (kept.status, kept.body) == (status, b"no such thing")


@pytest.mark.parametrize("status", [500, 503, 409, 403])
async def test_an_answer_that_is_not_the_last_word_is_not_kept(
    receiver: Receiver, database: Database, status: int
) -> None:
    receiver.answer = always(status)
    sent = request()
    async with sink_to(receiver.url, database) as sink:
        with contextlib.suppress(SinkUnavailable, SinkMisconfigured):
            assert only(await sink.write([sent])) is not None

    assert answers_to(database, [sent.message.id]) == {}


async def test_of_a_long_answer_only_status_and_headers_are_kept(
    receiver: Receiver, database: Database
) -> None:
    receiver.answer = always(200, "x" * 101)
    sent = request()
    async with sink_to(receiver.url, database, max_answer_bytes=100) as sink:
        await sink.write([sent])

    kept = answers_to(database, [sent.message.id])[sent.message.id]
    assert (kept.status, kept.body, kept.complete) == (200, b"", False)


async def test_see_other_is_an_answer_and_moved_is_not(receiver: Receiver) -> None:
    receiver.answer = always(303, Location="/elsewhere")
    async with sink_to(receiver.url) as sink:
        assert only(await sink.write([request()])) is None
        receiver.answer = always(301, Location="/elsewhere")
        with pytest.raises(SinkMisconfigured, match="301"):
            await sink.write([request()])


async def test_a_message_that_is_no_request_goes_to_the_base(receiver: Receiver) -> None:
    async with sink_to(receiver.url) as sink:
        await sink.write([delivery(queue="billing")])

    [(got, _)] = receiver.requests
    assert (got.method, got.path) == ("POST", "/take")
