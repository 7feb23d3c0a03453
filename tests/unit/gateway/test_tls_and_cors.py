"""HTTPS served by the gateway itself, and pages of other origins."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from forebay.errors import SettingsError
from gateway.server import bind
from gateway.settings import GatewaySettings
from gateway.sharing import ABSENT, Share
from gateway.tls import Certificate
from tests.servers.certificates import Certificates
from tests.unit.gateway.support import request, running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("held", [None, [ABSENT]], ids=["alone", "worker"])
async def test_with_a_certificate_it_speaks_https_and_only_that(
    certificates: Certificates, held: list[int] | None
) -> None:
    cert, key = certificates.server
    share = None if held is None else Share(held, 0)
    async with running(tls_cert=cert, tls_key=key, share=share) as gateway:
        trusting = ssl.create_default_context(cafile=certificates.ca)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.port, ssl=trusting, server_hostname="broker.test"
        )
        writer.write(request(b"x" * 100_000, headers="Connection: close\r\n"))
        answer = await reader.read()
        writer.close()

        assert answer.startswith(b"HTTP/1.1 202 ")
        assert [len(m.body) for m in gateway.broker.messages] == [100_000]
        plain = await gateway.connect()
        await plain.send(request(b"{}"))
        assert await plain.closed()
        assert len(gateway.broker.messages) == 1
        assert held is None or held == [0]


def test_files_that_cannot_be_used_stop_the_start_and_are_named(
    certificates: Certificates, tmp_path: Path
) -> None:
    cert, key = certificates.server
    _, other = certificates.client
    with pytest.raises(SettingsError, match=r"gateway\.tls_cert .*No such file"):
        bind(GatewaySettings(port=0, tls_cert=tmp_path / "none.pem"))
    with pytest.raises(SettingsError, match=r"gateway\.tls_key .*No such file"):
        bind(GatewaySettings(port=0, tls_cert=cert, tls_key=tmp_path / "none.pem"))
    with pytest.raises(SettingsError, match="cannot be used"):
        bind(GatewaySettings(port=0, tls_cert=cert, tls_key=other))
    with pytest.raises(SettingsError, match="cannot be used"):
        bind(GatewaySettings(port=0, tls_cert=cert, tls_key=certificates.locked))
    with pytest.raises(ValueError, match="without tls_cert"):
        GatewaySettings(tls_key=key)


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(
    certificates: Certificates, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, (cert, key), strict=True):
            target.unlink(missing_ok=True)
            target.write_bytes(source.read_bytes())

    install(certificates.server)
    served = Certificate(cert, key)
    assert _subject(served.context) == "broker.test"
    install(certificates.sign("renewed.test"))
    served.refresh()
    assert _subject(served.context) == "renewed.test"
    key.unlink()
    key.write_text("nonsense")
    with capture_logs() as lines:
        served.refresh()
    assert lines[0]["log_level"] == "error"
    assert _subject(served.context) == "renewed.test"


def _subject(context: ssl.SSLContext) -> str:
    """Whose certificate a client is shown, without a network between."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return "renewed.test" if b"renewed.test" in der else "broker.test" if b"broker.test" in der else "?"


# ---- pages of other origins

ASKED = {
    "Origin": "https://shop.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,idempotency-key",
}


@pytest.mark.parametrize("path", ["/v1/queues/orders/messages", "/v1/queues/orders"])
async def test_a_page_of_an_allowed_origin_may_ask_send_and_read(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    async with running(cors_origins=("https://shop.example",), keys_file=keys) as gateway:
        asked = await gateway.client.options(path, headers=ASKED)
        refused = await gateway.client.post(path, headers={"Origin": "https://shop.example"})

        assert (asked.status_code, asked.content) == (204, b"")
        assert asked.headers["access-control-allow-origin"] == "https://shop.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        # The page can read why.
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"


async def test_a_page_of_another_origin_may_not(tmp_path: Path) -> None:
    async with running(cors_origins=("https://shop.example",)) as gateway:
        asked = await gateway.client.options(
            "/v1/queues/orders/messages", headers=ASKED | {"Origin": "https://evil.example"}
        )
        sent = await gateway.post(headers={"Origin": "https://evil.example"})

        assert (asked.status_code, asked.json()["type"]) == (403, "/problems/origin-forbidden")
        assert "access-control-allow-origin" not in sent.headers


async def test_without_a_list_no_page_may_and_nothing_is_said_of_origins() -> None:
    async with running() as gateway:
        asked = await gateway.client.options("/v1/queues/orders/messages", headers=ASKED)

        assert asked.status_code == 405
        assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://shop.example/page"])
def test_what_is_no_origin_is_named(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        GatewaySettings(cors_origins=(origin,))
