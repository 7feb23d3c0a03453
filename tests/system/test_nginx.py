"""deploy/nginx with a real nginx: what it passes on, what it repeats, and what it answers by itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway.request_rules import MAX_HEAD
from gateway.server import KEEP_ALIVE
from gateway.settings import GatewaySettings
from tests.needs import missing_server
from tests.servers.certificates import Certificates
from tests.servers.nginx import SOURCE, Nginx, NginxNotInstalled, find_nginx
from tests.servers.postgres import free_port
from tests.servers.receiver import Receiver

SEND = "/v1/queues/orders/messages"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    try:
        find_nginx()
    except NginxNotInstalled as missing:
        missing_server(str(missing))


class Fake(Receiver):
    """A gateway that answers 202 to everything, as often as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = self._accept

    async def _accept(self, request: web.Request, body: bytes) -> web.StreamResponse:
        return web.json_response({"id": request.headers.get("Idempotency-Key")}, status=202)

    @property
    def keys(self) -> list[str | None]:
        return [request.headers.get("Idempotency-Key") for request, _ in self.requests]


class Dying(Fake):
    """Reads each request, and closes the connection without an answer."""

    async def _accept(self, request: web.Request, body: bytes) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return await super()._accept(request, body)


@pytest.fixture
async def gateway() -> AsyncIterator[Fake]:
    async with Fake() as fake:
        yield fake


@pytest.fixture
def nginx(gateway: Fake) -> Iterator[Nginx]:
    with Nginx([gateway.port]) as running:
        yield running


@pytest.fixture
async def client(nginx: Nginx) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(nginx.url) as session:
        yield session


async def test_a_request_without_a_key_gets_one_and_a_clients_own_is_kept(
    client: aiohttp.ClientSession, gateway: Fake
) -> None:
    for headers in ({}, {}, {"Idempotency-Key": "order-1"}):
        async with client.post(SEND, data=b"{}", headers=headers) as answer:
            assert answer.status == 202
            assert "Idempotency-Key" not in answer.headers

    first, second, own = gateway.keys
    assert first
    assert second not in (None, first)
    assert own == "order-1"


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-specversion": "1.0", "ce-id": "9", "ce-source": "/shop", "ce-type": "order"},
        {"Content-Type": "application/cloudevents+json"},
        {"Content-Type": "application/cloudevents-batch+json"},
    ],
    ids=str,
)
async def test_an_event_that_has_a_name_gets_no_key_that_would_hide_it(
    client: aiohttp.ClientSession, gateway: Fake, headers: dict[str, str]
) -> None:
    path = SEND.replace("messages", "batch") if "batch" in str(headers) else SEND
    async with client.post(path, data=b"{}", headers=headers) as answer:
        assert answer.status == 202

    async with client.post("/v1/forward/billing/messages", data=b"{}", headers=headers) as answer:
        assert answer.status == 202

    named, forwarded = gateway.keys
    assert named is None
    assert forwarded


@pytest.mark.parametrize(
    "path", [SEND, "/v1/queues/orders/batch", "/v1/sources/shop", "/v1/forward/billing/a%2Fb//c?x=%41"]
)
async def test_a_gateway_that_dies_in_the_middle_costs_no_failure(path: str) -> None:
    """The other one gets the same request under the same key."""
    async with Dying() as dying, Fake() as well:
        with Nginx([dying.port, well.port]) as nginx:
            async with aiohttp.ClientSession() as client:
                # As often as it takes: who is asked first is nginx's choice.
                while not dying.requests:
                    async with client.post(
                        nginx.url + path, data=b"body", headers={"Content-Length": "4"}
                    ) as answer:
                        assert answer.status == 202
    assert dying.keys[-1] is not None
    assert well.keys[-1] == dying.keys[-1]
    assert well.requests[-1][1] == b"body"


async def test_what_a_gateway_answers_is_nobody_elses_to_answer_again() -> None:
    """A 503 may say that it is not known whether the message was stored; another gateway cannot."""
    async with Fake() as busy, Fake() as other:

        async def unknown(request: web.Request, body: bytes) -> web.StreamResponse:
            return web.json_response({"type": "/problems/outcome-unknown"}, status=503)

        busy.answer = other.answer = unknown
        with Nginx([busy.port, other.port]) as nginx:
            async with aiohttp.ClientSession(nginx.url) as client, client.post(SEND, data=b"{}") as answer:
                assert answer.status == 503
                assert (await answer.json())["type"] == "/problems/outcome-unknown"
                key = answer.headers["Idempotency-Key"]
    assert [*busy.keys, *other.keys] == [key]


async def test_one_gateway_that_is_there_is_enough(gateway: Fake) -> None:
    with Nginx([gateway.port, *(free_port() for _ in range(5))]) as nginx:
        async with aiohttp.ClientSession(nginx.url) as client:
            for _ in range(20):
                async with client.post(SEND, data=b"{}") as answer:
                    assert answer.status == 202


async def test_without_a_gateway_it_says_that_nothing_was_stored() -> None:
    with Nginx([free_port(), free_port()]) as nginx:
        async with aiohttp.ClientSession(nginx.url) as client, client.post(SEND, data=b"{}") as answer:
            document = json.loads(await answer.read())
            assert (answer.status, document["status"], document["type"]) == (503, 503, "/problems/not-ready")
            assert answer.content_type == "application/problem+json"
            assert answer.headers["Retry-After"] == "2"


async def test_when_nobody_answers_it_says_so_and_under_which_key_to_send_again() -> None:
    async with Dying() as dying:
        with Nginx([dying.port]) as nginx:
            async with aiohttp.ClientSession(nginx.url) as client, client.post(SEND, data=b"{}") as answer:
                document = json.loads(await answer.read())
                assert (answer.status, document["type"]) == (502, "/problems/outcome-unknown")
                assert {*dying.keys} == {answer.headers["Idempotency-Key"]}
                assert answer.headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("request_", "status", "type_"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid-request"),
        (b"NONSENSE\r\n\r\n", 400, "invalid-request"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "headers-too-large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, "headers-too-large"),
        (
            b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 900001\r\n\r\n",
            413,
            "body-too-large",
        ),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (b"GET /v1/queues/../../metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (b"GET /v1/queues/%2e%2e/%2E%2E/metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (b"GET //admin/v1/queues HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (b"GET /.problem/502 HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (
            b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "invalid-request",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_its_own_refusals_are_problem_documents(
    nginx: Nginx, gateway: Fake, request_: bytes, status: int, type_: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
    writer.write(request_)
    head, _, _ = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n\r\n")
    body = await reader.readuntil(b"}")
    writer.close()

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/problem+json" in head
    document = json.loads(body)
    assert (document["status"], document["type"]) == (status, f"/problems/{type_}")
    assert gateway.requests == []


async def test_headers_about_the_client_are_nginxs_and_what_belongs_to_the_connection_stays_behind(
    client: aiohttp.ClientSession, gateway: Fake
) -> None:
    said = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "Proxy": "http://evil",
        "Upgrade": "websocket",
        "Connection": "upgrade, Authorization",
        "Authorization": "Bearer a",
        "Under_score": "x",
    }
    async with client.post(SEND, data=b"{}", headers=said) as answer:
        assert answer.status == 202

    ((request, _),) = gateway.requests
    assert request.headers["X-Forwarded-For"] == request.headers["X-Real-IP"] == "127.0.0.1"
    assert request.headers["X-Forwarded-Proto"] == "http"
    assert request.headers["Authorization"] == "Bearer a"
    assert not {"Forwarded", "Proxy", "Upgrade", "Connection", "Under_score"} & set(request.headers)


async def test_a_trusted_proxy_may_say_for_whom_it_asks(gateway: Fake) -> None:
    trust = {"site/trusted-proxies.conf": "set_real_ip_from 127.0.0.0/8;\n"}
    with Nginx([gateway.port], files=trust) as nginx:
        async with aiohttp.ClientSession(nginx.url) as client:
            said = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
            async with client.post(SEND, data=b"{}", headers=said) as answer:
                assert answer.status == 202

    ((request, _),) = gateway.requests
    assert request.headers["X-Forwarded-For"] == "203.0.113.9"


async def test_a_client_of_http_1_0_needs_no_host(nginx: Nginx, gateway: Fake) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
    writer.write(b"POST /v1/queues/orders/messages HTTP/1.0\r\nContent-Length: 1\r\n\r\n1")
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert head.startswith(b"HTTP/1.1 202 ")
    ((request, _),) = gateway.requests
    assert request.headers["Host"]


def test_its_limits_are_the_gateways() -> None:
    http = (SOURCE / "forebay/http.conf").read_text()
    limits = (SOURCE / "site/limits.conf").read_text()
    settings = GatewaySettings()

    assert f"client_max_body_size {settings.max_body_bytes};" in limits
    assert f"client_body_timeout {settings.body_timeout:g}s;" in http
    number, size = re.findall(r"large_client_header_buffers (\d+) (\d+)k;", http)[0]
    assert int(number) * int(size) * 2**10 == MAX_HEAD
    to_gateways = re.search(r"keepalive_timeout (\d+)s;", http)
    assert to_gateways is not None
    assert int(to_gateways[1]) < KEEP_ALIVE


async def test_connections_to_the_gateway_are_kept(client: aiohttp.ClientSession, gateway: Fake) -> None:
    for _ in range(20):
        async with client.post(SEND, data=b"{}") as answer:
            assert answer.status == 202

    assert len(gateway.connections) <= 2  # one of each worker


async def test_a_batch_without_a_length_is_passed_on_while_it_comes(
    client: aiohttp.ClientSession, gateway: Fake
) -> None:
    first_is_here = asyncio.Event()

    async def read(request: web.Request) -> web.StreamResponse:
        assert await request.content.readline() == b"1\n"
        first_is_here.set()
        rest = await request.content.read()
        return web.json_response({"rest": rest.decode()}, status=202)

    gateway._take = read  # type: ignore[method-assign]

    async def lines() -> AsyncIterator[bytes]:
        yield b"1\n"
        await first_is_here.wait()
        yield b"2\n"

    await gateway.stop()
    await gateway.start()
    async with client.post("/v1/queues/orders/batch", data=lines()) as answer:
        assert (answer.status, await answer.json()) == (202, {"rest": "2\n"})


async def test_gateways_come_and_go(gateway: Fake) -> None:
    async with Fake() as newcomer:
        with Nginx([gateway.port]) as nginx:
            async with aiohttp.ClientSession(nginx.url) as client:
                nginx.set_gateways([newcomer.port])
                async with client.post(SEND, data=b"{}") as answer:
                    assert answer.status == 202
    assert (len(gateway.requests), len(newcomer.requests)) == (0, 1)


async def test_before_a_reload_answers_end_their_connections(nginx: Nginx, gateway: Fake) -> None:
    """Or a client's next request could arrive when nginx closes what is idle."""
    paths = [SEND, "/v1/queues/orders/batch", "/v1/forward/billing/a", "/v1/sources/shop", "/v1/queues"]
    async with aiohttp.ClientSession(nginx.url) as client:

        async def connection(path: str) -> str | None:
            async with client.post(path, data=b"{}", headers={"Content-Length": "2"}) as answer:
                assert answer.status == 202
                return answer.headers.get("Connection")

        assert {await connection(path) for path in paths} == {"keep-alive"}
        (nginx.folder / "closing").touch()
        assert {await connection(path) for path in paths} == {"close"}
        (nginx.folder / "closing").unlink()
        assert await connection(SEND) == "keep-alive"


async def test_with_tls_and_http_2(gateway: Fake, tmp_path: Path) -> None:
    """By deploy/nginx/examples/tls.conf; the gateway is told that the client came by https."""
    made = Certificates(tmp_path)
    certificate, key = made.sign("gateways.test")
    port = free_port()
    example = (SOURCE / "examples/tls.conf").read_text().replace("listen 8443", f"listen 127.0.0.1:{port}")
    files = {
        "servers/tls.conf": example,
        "site/tls/certificate.pem": certificate.read_text(),
        "site/tls/key.pem": key.read_text(),
    }

    async def ask(version: str) -> str:
        asked = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--show-error", version, "--cacert", str(made.ca),
            "--resolve", f"gateways.test:{port}:127.0.0.1",
            "--output", "/dev/null", "--write-out", "%{http_code} %{http_version}",
            "--data", "{}", f"https://gateways.test:{port}{SEND}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asked.communicate()
        return said.decode()

    with Nginx([gateway.port], files=files):
        assert await ask("--http2") == "202 2"
        assert await ask("--http1.1") == "202 1.1"

    for request, _ in gateway.requests:
        assert request.headers["X-Forwarded-Proto"] == "https"
        assert request.headers["Host"] == "gateways.test"
