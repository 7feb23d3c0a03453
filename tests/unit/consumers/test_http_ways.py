"""The http sink's ways to a service, and where it does not go: redirects, proxies, encryption."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from consumers.settings import QueueSettings
from consumers.sinks.factory import make_sink
from consumers.sinks.settings import HttpSettings
from forebay.errors import SettingsError, SinkMisconfigured, SinkUnavailable
from forebay.testing.sink_contract import deliveries, delivery
from tests.servers.certificates import Certificates
from tests.servers.receiver import Receiver, always
from tests.unit.consumers.http import only, sink_to


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def other() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


# ---- redirects


def redirect(to: str, status: int = 308) -> Any:
    return always(status, Location=to)


async def test_a_redirect_is_a_configuration_error_that_says_where_to(receiver: Receiver) -> None:
    receiver.answer = redirect("/v2/take")
    async with sink_to(receiver.url) as sink:
        with pytest.raises(
            SinkMisconfigured, match=r"/v2/take; make that http\.url, or set http\.follow_redirects"
        ):
            await sink.write(deliveries(1))


async def test_a_redirect_on_the_same_host_is_followed_with_method_and_body(receiver: Receiver) -> None:
    async def moved(request: web.Request, body: bytes) -> web.StreamResponse | None:
        return web.Response(status=307, headers={"Location": "/v2"}) if request.path == "/take" else None

    receiver.answer = moved
    d = delivery()
    async with sink_to(receiver.url, follow_redirects=True, headers=["X-Key: sesame"]) as sink:
        assert only(await sink.write([d])) is None

    assert receiver.effects == {d.message.id: d.message.body}
    assert [(r.path, r.headers["X-Key"]) for r, _ in receiver.requests] == [
        ("/take", "sesame"),
        ("/v2", "sesame"),
    ]


async def test_redirects_in_a_circle_end(receiver: Receiver) -> None:
    receiver.answer = redirect("/take")
    async with sink_to(receiver.url, follow_redirects=True) as sink:
        with pytest.raises(SinkMisconfigured, match="redirects more than 5 times"):
            await sink.write(deliveries(1))

    assert len(receiver.requests) == 6


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_a_redirect_to_a_private_address_is_refused_where_it_is_connected_to(
    receiver: Receiver, other: Receiver, host: str
) -> None:
    receiver.answer = redirect(f"http://{host}:{other.port}/take")
    async with sink_to(receiver.url, follow_redirects=True) as sink:
        with pytest.raises(SinkMisconfigured, match="a private address is only connected to where it is"):
            await sink.write(deliveries(1))

    assert other.requests == []


async def test_a_name_that_changes_its_address_gains_nothing(
    receiver: Receiver, other: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a name resolved to before: the address that is connected to is judged, all of them."""
    real = asyncio.base_events.BaseEventLoop.getaddrinfo
    asked: list[str] = []

    async def rebinding(self: Any, host: Any, port: Any, **more: Any) -> Any:
        if host != "rebinding.test":
            return await real(self, host, port, **more)
        asked.append(host)
        return [*await real(self, "127.0.0.1", port, **more), *await real(self, "127.0.0.2", port, **more)]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", rebinding)
    receiver.answer = redirect(f"http://rebinding.test:{other.port}/take")
    async with sink_to(receiver.url, follow_redirects=True) as sink:
        with pytest.raises(SinkMisconfigured, match="a private address"):
            await sink.write(deliveries(1))

    assert asked
    assert other.requests == []


async def test_through_a_proxy_only_redirects_to_the_same_host_are_followed(receiver: Receiver) -> None:
    receiver.answer = redirect("http://elsewhere.test/take")
    async with sink_to("http://shop.test/take", proxy=receiver.url, follow_redirects=True) as sink:
        with pytest.raises(SinkMisconfigured, match="through a proxy"):
            await sink.write(deliveries(1))


# ---- ways there


async def test_a_forward_proxy_is_asked_instead_of_the_host(receiver: Receiver) -> None:
    d = delivery()
    async with sink_to("http://shop.test/take", proxy=receiver.url.replace("//", "//user:sesame@")) as sink:
        assert only(await sink.write([d])) is None

    request, _ = receiver.requests[0]
    assert request.headers["Host"] == "shop.test"
    assert request.headers["Proxy-Authorization"].startswith("Basic ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://no-such-host.invalid/"])
async def test_who_cannot_be_reached_is_an_outage(url: str) -> None:
    async with sink_to(url, timeout=5.0) as sink:
        with pytest.raises(SinkUnavailable, match="cannot be reached"):
            await sink.write(deliveries(2))
        with pytest.raises(SinkUnavailable, match="cannot be reached"):
            await sink.probe()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def encrypted(certificates: Certificates) -> AsyncIterator[Receiver]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(*certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED
    async with Receiver(tls=context) as receiver:
        yield receiver


async def test_both_sides_show_their_certificates(encrypted: Receiver, certificates: Certificates) -> None:
    certificate, key = certificates.client
    tls = {"ca_file": certificates.ca, "certificate_file": certificate, "key_file": key}
    async with sink_to(encrypted.url, tls=tls | {"server_name": "broker.test"}) as sink:
        assert only(await sink.write(deliveries(1))) is None


async def test_a_certificate_that_nobody_vouches_for_pauses_the_queue(encrypted: Receiver) -> None:
    async with sink_to(encrypted.url) as sink:
        with pytest.raises(
            SinkMisconfigured, match=r"the certificate of https://127.* correct http\.tls\.ca_file"
        ):
            await sink.write(deliveries(1))


def test_files_that_are_not_there_are_an_error_at_the_start(tmp_path: Path) -> None:
    http = HttpSettings.model_validate({"url": "https://a/", "tls": {"ca_file": tmp_path / "none.pem"}})
    with pytest.raises(SettingsError, match=r"queues\.orders\.http\.tls\.ca_file .* cannot be read"):
        make_sink("orders", QueueSettings(sink="http", http=http), None)
