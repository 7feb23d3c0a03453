"""RabbitMQ's URL: hosts, user, virtual host; and never a password in an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.rabbitmq.url import read_url
from forebay.brokers.tls import TLSSettings
from forebay.errors import SettingsError

SETTINGS = RabbitMQSettings()


def test_several_hosts_one_user_one_virtual_host() -> None:
    one, two, three = read_url("amqp://u:p%40ss@a:5673,b,[::1]:5674/my%2Fhost", SETTINGS)
    assert [(p.host, p.port) for p in (one, two, three)] == [("a", 5673), ("b", 5672), ("::1", 5674)]
    for p in (one, two, three):
        assert (p.virtual_host, p.credentials.username, p.credentials.password) == ("my/host", "u", "p@ss")
        assert p.ssl_options is None


@pytest.mark.parametrize("url", ["amqp://host", "amqp://host/", "amqp://host/%2F", "AMQP://host"])
def test_the_default_virtual_host(url: str) -> None:
    [p] = read_url(url, SETTINGS)
    assert (p.host, p.virtual_host, p.credentials.username) == ("host", "/", "guest")


def test_amqps_is_encrypted_and_checks_the_name_on_the_certificate() -> None:
    [p] = read_url("amqps://u:p@broker.example/", SETTINGS)
    assert p.port == 5671
    assert p.ssl_options.server_hostname == "broker.example"
    assert p.ssl_options.context.check_hostname


@pytest.mark.parametrize(
    "url", ["amqp:/u:secret@h", "amqp://u:secret@h:99x/", "amqp://u:secret@h?x=1", "amqp://u:secret@h h/"]
)
def test_an_unreadable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_url(url, SETTINGS)
    assert "secret" not in str(caught.value)
    assert "amqp://user:password@host" in str(caught.value)


@pytest.mark.parametrize("delays", [[], [5, 1], [1, 1]])
def test_delays_must_rise(delays: list[float]) -> None:
    with pytest.raises(ValidationError, match="delays must rise"):
        RabbitMQSettings(delays=tuple(delays))


def test_a_tls_table_with_a_url_that_does_not_encrypt_is_refused() -> None:
    settings = RabbitMQSettings(tls=TLSSettings(server_name="broker.example"))
    with pytest.raises(SettingsError, match="amqps://"):
        read_url("amqp://host/", settings)


def test_the_name_on_the_certificate_may_be_another_than_the_host() -> None:
    settings = RabbitMQSettings(tls=TLSSettings(server_name="broker.example"))
    [p] = read_url("amqps://10.0.0.1/", settings)
    assert p.ssl_options.server_hostname == "broker.example"


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    with pytest.raises(SettingsError, match=r"tls\.ca_file .*ca\.pem"):
        read_url("amqps://host/", RabbitMQSettings(tls=TLSSettings(ca_file=ca)))


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="set both or neither"):
        TLSSettings(key_file=tmp_path / "key.pem").context()
