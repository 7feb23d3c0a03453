"""The client keeps one message one message, whatever the gateway and the network do."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from forebay.client import (
    Accepted,
    Busy,
    Client,
    QueueUnknown,
    Refused,
    SyncClient,
    Unauthorized,
    Unreachable,
)
from tests.unit.cli.gateways import ScriptedGateway

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """A server that answers as told, one answer per request and the last one from then on."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.url = ""

    @property
    def keys(self) -> list[str]:
        return [request.headers["Idempotency-Key"] for request in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.times.append(time.monotonic())
        self.requests.append(request)
        self.bodies.append(await request.read())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        app = web.Application()
        app.router.add_post("/v1/queues/{queue}/messages", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


async def accept(request: web.Request) -> web.StreamResponse:
    return web.json_response(
        {"id": "i", "queue": request.match_info["queue"], "durability": "synced", "duplicate": False},
        status=202,
    )


def problem(status: int, type: str = "about:blank", *, retry_after: str | None = None) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Retry-After": retry_after} if retry_after else {}
        return web.json_response({"type": type, "detail": f"said {status}"}, status=status, headers=headers)

    return answer


async def break_off_in_the_answer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=202, headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"id":')
    assert request.transport is not None
    request.transport.abort()
    return response


async def never_answer(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def answer_like_a_portal(_: web.Request) -> web.StreamResponse:
    return web.Response(status=202, text="<html>welcome to the hotel</html>")


class NoJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return a


async def test_an_accepted_message_comes_back_with_its_promise() -> None:
    async with Gateway(accept).running() as gateway, Client(gateway.url) as client:
        accepted = await client.send("orders", b"\x00body")

    assert accepted == Accepted(id="i", queue="orders", durability="synced", duplicate=False)
    assert gateway.bodies == [b"\x00body"]


async def test_everything_about_a_message_travels_in_its_headers() -> None:
    async with Gateway(accept).running() as gateway, Client(gateway.url, "secret") as client:
        await client.send(
            "orders",
            b"{}",
            content_type="application/json",
            idempotency_key="k",
            ordering_key="o",
            delay=1.5,
            headers={"Origin": "EWR"},
        )

    sent = gateway.requests[0].headers
    assert sent["Content-Type"] == "application/json"
    assert sent["Idempotency-Key"] == "k"
    assert sent["Forebay-Ordering-Key"] == "o"
    assert float(sent["Forebay-Delay"]) == 1.5
    assert sent["Forebay-Meta-Origin"] == "EWR"
    assert sent["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "trouble",
    [
        problem(503),
        problem(503, "https://example.org/outcome-unknown"),
        problem(429),
        problem(500),
        problem(502),
        break_off_in_the_answer,
        answer_like_a_portal,
    ],
)
async def test_every_try_has_the_same_idempotency_key_and_body(trouble: Answer) -> None:
    """Also when the gateway stored the message and only its answer was lost."""
    async with Gateway(trouble, trouble, accept).running() as gateway, Client(gateway.url) as client:
        await client.send("orders", b"body")

    assert len(gateway.requests) == 3
    assert len(set(gateway.keys)) == 1
    assert set(gateway.bodies) == {b"body"}
    assert client.retries == 2


async def test_a_slow_try_is_given_up_and_tried_again_with_the_same_key() -> None:
    async with (
        Gateway(never_answer, accept).running() as gateway,
        Client(gateway.url, timeout=0.2) as client,
    ):
        await client.send("orders", b"body")

    assert len(set(gateway.keys)) == 1


async def test_two_messages_never_share_a_made_up_key() -> None:
    async with Gateway(accept).running() as gateway, Client(gateway.url) as client:
        await client.send("orders", b"same")
        await client.send("orders", b"same")

    assert len(set(gateway.keys)) == 2


async def test_retry_after_is_waited_for() -> None:
    async with (
        Gateway(problem(503, retry_after="1"), accept).running() as gateway,
        Client(gateway.url, rng=NoJitter()) as client,
    ):
        await client.send("orders", b"body")

    first, second = gateway.times
    assert second - first >= 0.99


@pytest.mark.parametrize("nonsense", ["soon", "nan", "-5", "inf"])
async def test_a_senseless_retry_after_is_no_reason_to_wait(nonsense: str) -> None:
    async with (
        Gateway(problem(503, retry_after=nonsense), accept).running() as gateway,
        Client(gateway.url, retry_for=5, rng=NoJitter()) as client,
    ):
        assert (await client.send("orders", b"body")).id == "i"


async def test_a_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    async with (
        Gateway(problem(429, retry_after="3600")).running() as gateway,
        Client(gateway.url, retry_for=5) as client,
    ):
        with pytest.raises(Busy) as caught:
            await client.send("orders", b"body", idempotency_key="k")

    assert len(gateway.requests) == 1
    assert (caught.value.status, caught.value.detail) == (429, "said 429")
    assert caught.value.idempotency_key == "k"
    assert not caught.value.maybe_stored


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Refused),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, QueueUnknown),
        (413, Refused),
        (422, Refused),
    ],
)
async def test_a_final_no_is_not_asked_again(status: int, error: type[Refused]) -> None:
    async with (
        Gateway(problem(status, "https://example.org/x")).running() as gateway,
        Client(gateway.url) as client,
    ):
        with pytest.raises(error) as caught:
            await client.send("orders", b"body")

    assert len(gateway.requests) == 1
    assert type(caught.value) is error
    assert caught.value.status == status
    assert caught.value.type == "https://example.org/x"


async def test_a_lost_answer_is_said_to_be_maybe_stored() -> None:
    async with (
        Gateway(break_off_in_the_answer).running() as gateway,
        Client(gateway.url, retry_for=0.3) as client,
    ):
        with pytest.raises(Unreachable) as caught:
            await client.send("orders", b"body")

    assert caught.value.maybe_stored


async def test_nobody_listening_is_certainly_not_stored() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with Client(url, retry_for=0.3) as client:
            with pytest.raises(Unreachable, match=f"no connection to {url}: Connection refused") as caught:
                await client.send("orders", b"body")

    assert not caught.value.maybe_stored
    assert client.retries >= 1


async def test_https_to_a_port_that_speaks_http_is_named() -> None:
    with ScriptedGateway().running() as gateway:
        url = gateway.url.replace("http://", "https://")
        async with Client(url, retry_for=0.1) as client:
            with pytest.raises(Unreachable, match=r"no TLS there .* http:// instead of https://"):
                await client.send("orders", b"body")


async def test_a_gateway_that_comes_back_within_the_deadline_gets_the_message() -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}", retry_for=20) as client:
        sending = asyncio.create_task(client.send("orders", b"body"))
        async with asyncio.timeout(10):
            while not client.retries:  # noqa: ASYNC110 - the client has no event for it
                await asyncio.sleep(0.01)
        gateway = Gateway(accept)
        app = web.Application()
        app.router.add_post("/v1/queues/{queue}/messages", gateway.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        accepted = await sending
        await runner.cleanup()

    assert accepted.id == "i"


async def test_redirects_are_not_followed() -> None:
    """A redirect would turn a POST into a GET somewhere else; it is a wrong address."""
    async with Gateway(problem(307)).running() as gateway, Client(gateway.url) as client:
        with pytest.raises(Refused):
            await client.send("orders", b"body")


def test_an_address_without_a_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Client("localhost:8080")


def test_the_synchronous_client_sends_too() -> None:
    async def serve() -> None:
        async with gateway.running():
            ready.set()
            await stop.wait()

    gateway = Gateway(accept)
    loop = asyncio.new_event_loop()
    ready, stop = asyncio.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(serve(), loop)
    asyncio.run_coroutine_threadsafe(ready.wait(), loop).result(5)
    try:
        with SyncClient(gateway.url) as client:
            first, second = (client.send("orders", body) for body in (b"a", b"b"))
    finally:
        loop.call_soon_threadsafe(stop.set)
        serving.result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()

    assert first.queue == second.queue == "orders"
    assert gateway.bodies == [b"a", b"b"]
