"""RabbitMQ over TLS: who is trusted, and who is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.brokers.tls import TLSSettings
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.testing.broker_contract.harness import drain, fresh_name, message, publish
from tests.contract.rabbitmq import SETTINGS
from tests.needs import missing_server
from tests.servers.certificates import Certificates
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQ, RabbitMQNotInstalled


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def url(certificates: Certificates) -> Iterator[str]:
    """A server that talks TLS only, and only with those who show a certificate."""
    port = free_port()
    certificate, key = certificates.server
    settings = {
        "listeners.ssl.default": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": str(certificates.ca),
        "ssl_options.certfile": str(certificate),
        "ssl_options.keyfile": str(key),
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
    }
    try:
        server = RabbitMQ(settings=settings)
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield f"amqps://{server.user}:{server.password}@127.0.0.1:{port}/"


@pytest.fixture
def tls(certificates: Certificates) -> TLSSettings:
    """All that this server wants."""
    certificate, key = certificates.client
    return TLSSettings(
        ca_file=certificates.ca, certificate_file=certificate, key_file=key, server_name="broker.test"
    )


async def round_trip(url: str, tls: TLSSettings) -> None:
    settings = SETTINGS.model_copy(update={"tls": tls, "connect_timeout": 3})
    async with RabbitMQBroker.open(url, settings) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        sent = message(b"in secret")
        await publish(broker, queue, [sent])
        assert [d.message for d in await drain(broker, queue, 1, 5)] == [sent]


async def test_messages_go_over_tls_with_certificates_on_both_sides(url: str, tls: TLSSettings) -> None:
    await round_trip(url, tls)


async def test_an_encrypted_key_is_opened_with_its_password(
    url: str, tls: TLSSettings, certificates: Certificates
) -> None:
    await round_trip(
        url, TLSSettings(**{**tls.model_dump(), "key_file": certificates.locked, "key_password": "open"})
    )


async def test_a_server_that_nobody_vouches_for_is_refused(url: str, tls: TLSSettings) -> None:
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        await round_trip(url, tls.model_copy(update={"ca_file": None}))


async def test_a_server_with_another_name_is_refused(url: str, tls: TLSSettings) -> None:
    with pytest.raises(BrokerUnavailable, match=r"not valid for '127\.0\.0\.1'"):
        await round_trip(url, tls.model_copy(update={"server_name": None}))


async def test_without_verify_any_server_is_taken(url: str, tls: TLSSettings) -> None:
    await round_trip(url, tls.model_copy(update={"ca_file": None, "server_name": None, "verify": False}))


async def test_a_client_without_the_certificate_that_is_asked_for_is_told(url: str, tls: TLSSettings) -> None:
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await round_trip(url, tls.model_copy(update={"certificate_file": None, "key_file": None}))


async def test_a_key_that_cannot_be_opened_is_named(
    url: str, tls: TLSSettings, certificates: Certificates
) -> None:
    with pytest.raises(SettingsError, match=r"a-client\.pem and its key cannot be used.*tls\.key_password"):
        await round_trip(url, tls.model_copy(update={"key_file": certificates.locked}))
