"""Kafka's URL and settings: hosts, login, encryption; and never a password in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.brokers.kafka.connection import findings, read_url, why_not
from forebay.brokers.kafka.settings import KafkaSettings, KafkaTLSSettings
from forebay.errors import SettingsError
from tests.servers.postgres import free_port

SETTINGS = KafkaSettings()
TLS = KafkaTLSSettings(enabled=True)


def login(url: str, **settings: object) -> tuple[str, ...]:
    connection = read_url(url, KafkaSettings.model_validate(settings))
    names = ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password")
    return tuple(connection[name] for name in names if name in connection)


def test_a_url_names_several_hosts() -> None:
    for url in ("kafka://one:9093,two,[::1]:9094", "KAFKA://one:9093,two,[::1]:9094/"):
        assert read_url(url, SETTINGS)["bootstrap_servers"] == ["one:9093", "two:9092", "[::1]:9094"]


@pytest.mark.parametrize(
    "url",
    [
        "kafka://", "kafka:///x", "kafka://u:secret@", "kafka:/u:secret@h", "kafka://u:secret@h:99x",
        "kafka://u:secret@h/topic", "kafka://u:secret@h?x=1", "amqp://u:secret@h",
    ],
)  # fmt: skip
def test_an_unreadable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="kafka://user:password@host") as caught:
        read_url(url, SETTINGS)
    assert "secret" not in str(caught.value)


def test_nobody_logs_in_unless_a_user_is_set() -> None:
    assert login("kafka://h") == ("PLAINTEXT",)
    assert login("kafka://h", tls=TLS) == ("SSL",)


def test_a_user_is_quoted_in_the_url_and_logs_in_by_scram() -> None:
    assert login("kafka://u%40x:p%3As%2F@h") == ("SASL_PLAINTEXT", "SCRAM-SHA-512", "u@x", "p:s/")


def test_a_user_of_the_settings_logs_in_where_the_url_names_none() -> None:
    mine = {"user": "mine", "password": "open", "sasl_mechanism": "PLAIN", "tls": TLS}
    assert login("kafka://h", **mine) == ("SASL_SSL", "PLAIN", "mine", "open")
    assert login("kafka://u@h", **mine) == ("SASL_SSL", "PLAIN", "u", "open")
    assert login("kafka://u:p@h", **mine) == ("SASL_SSL", "PLAIN", "u", "p")


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("kafka://u@h", {}),
        ("kafka://:secret@h", {}),
        ("kafka://h", {"user": "u"}),
        ("kafka://h", {"password": "secret"}),
        ("kafka://h", {"sasl_mechanism": "PLAIN"}),
    ],
)
def test_half_a_login_is_refused(url: str, settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="both a user and a password") as caught:
        login(url, **settings)
    assert "secret" not in str(caught.value)


def test_a_tls_table_that_is_not_enabled_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"broker\.kafka\.tls\.enabled = true"):
        login("kafka://h", tls=KafkaTLSSettings(server_name="broker.example"))


def test_the_certificate_is_checked_for_the_hosts_name() -> None:
    assert read_url("kafka://h", KafkaSettings(tls=TLS))["ssl_context"].check_hostname


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tls\.ca_file .*ca\.pem"):
        login("kafka://h", tls=KafkaTLSSettings(enabled=True, ca_file=tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("url", "settings", "told"),
    [
        ("kafka://u:p@far,127.0.0.1", {"sasl_mechanism": "PLAIN"}, "far:9092"),
        ("kafka://u:p@localhost,127.1.2.3,[::1]", {"sasl_mechanism": "PLAIN"}, ""),
        ("kafka://u:p@far", {"sasl_mechanism": "PLAIN", "tls": TLS}, ""),
        ("kafka://u:p@far", {}, ""),
        ("kafka://far", {}, ""),
    ],
)
def test_a_password_that_goes_unencrypted_is_found(url: str, settings: dict[str, object], told: str) -> None:
    found = findings(read_url(url, KafkaSettings.model_validate(settings)))
    assert [f.verdict for f in found] == (["warn"] if told else [])
    assert all(f"goes to {told} unencrypted" in f.text for f in found)


async def test_hosts_with_the_same_trouble_are_told_together() -> None:
    one, two = free_port(), free_port()
    connection = read_url(f"kafka://127.0.0.1:{one},127.0.0.1:{two}", SETTINGS)
    assert await why_not(connection) == f"127.0.0.1:{one}, 127.0.0.1:{two}: Connection refused"
