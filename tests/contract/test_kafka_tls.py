"""Kafka over TLS and with a login: who is trusted, who is let in, and what the others are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.kafka.settings import KafkaSettings, KafkaTLSSettings
from forebay.errors import BrokerUnavailable
from forebay.testing.broker_contract.harness import drain, fresh_name, message, publish
from tests.contract.kafka import SETTINGS
from tests.needs import missing_server
from tests.servers.certificates import Certificates
from tests.servers.kafka import KafkaCluster, KafkaNotInstalled

PASSWORD = "p@ss:w/rd"
QUOTED = "p%40ss%3Aw%2Frd"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def ports(certificates: Certificates) -> Iterator[dict[str, int]]:
    """Of a server with a listener of each kind; `SSL` takes only those who show a certificate."""
    certificate, key = certificates.server
    store = certificates.folder / "server.store"
    store.write_text(key.read_text() + certificate.read_text())
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_plain="{PASSWORD}";'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
    }
    for listener in ("sasl_ssl", "sasl_plaintext"):
        settings[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
        settings[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = scram
    try:
        server = KafkaCluster(
            1,
            settings=settings,
            listeners=("PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"),
            scram=[f"SCRAM-SHA-512=[name=scram,password={PASSWORD}]"],
        )
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield dict(server.nodes[0].ports)


@pytest.fixture
def tls(certificates: Certificates) -> KafkaTLSSettings:
    return KafkaTLSSettings(enabled=True, ca_file=certificates.ca, server_name="broker.test")


def tuned(**settings: object) -> KafkaSettings:
    return KafkaSettings(**{**SETTINGS.model_dump(), "partitions": 1, **settings})


async def round_trip(url: str, settings: KafkaSettings) -> None:
    async with KafkaBroker.open(url, settings) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        sent = message(b"in secret")
        await publish(broker, queue, [sent])
        assert [d.message for d in await drain(broker, queue, 1, 5)] == [sent]


async def test_a_user_of_the_url_logs_in_by_scram_over_tls(
    ports: dict[str, int], tls: KafkaTLSSettings
) -> None:
    await round_trip(f"kafka://scram:{QUOTED}@127.0.0.1:{ports['SASL_SSL']}", tuned(tls=tls))


async def test_a_user_of_the_settings_logs_in_by_plain_over_tls(
    ports: dict[str, int], tls: KafkaTLSSettings
) -> None:
    settings = tuned(tls=tls, sasl_mechanism="PLAIN", user="plain", password=PASSWORD)
    await round_trip(f"kafka://127.0.0.1:{ports['SASL_SSL']}", settings)


async def test_a_certificate_of_ours_is_shown_to_who_asks_for_one(
    ports: dict[str, int], tls: KafkaTLSSettings, certificates: Certificates
) -> None:
    certificate, key = certificates.client
    shown = tls.model_copy(update={"certificate_file": certificate, "key_file": key})
    await round_trip(f"kafka://127.0.0.1:{ports['SSL']}", tuned(tls=shown))


async def test_a_password_that_goes_unencrypted_is_warned_of(ports: dict[str, int]) -> None:
    # This address leads to this host, and does not look like it.
    url = f"kafka://plain:{QUOTED}@0.0.0.0:{ports['SASL_PLAINTEXT']}"
    with capture_logs() as logs:
        async with KafkaBroker.open(url, tuned(sasl_mechanism="PLAIN")) as broker:
            found = [f for f in await broker.examine([]) if f.check == "login"]
    assert [f.verdict for f in found] == ["warn"]
    assert [line["log_level"] for line in logs if line["event"] == found[0].text] == ["warning"]
    assert PASSWORD not in f"{found}{logs}"


WRONG = [
    ("SASL_SSL", "scram:wrong", {}, {}, "refuses the login"),
    ("SASL_SSL", "plain:wrong", {}, {"sasl_mechanism": "PLAIN"}, "refuses the login"),
    ("SASL_SSL", "scram:wrong", {}, {"sasl_mechanism": "SCRAM-SHA-256"}, "no login by SCRAM-SHA-256"),
    ("SASL_SSL", "", {}, {}, "wants a login"),
    ("SASL_PLAINTEXT", "", None, {}, "wants a login"),
    ("PLAINTEXT", "scram:wrong", None, {}, "takes no login"),
    ("SASL_SSL", "scram:wrong", None, {}, "tls.enabled"),
    ("SSL", "", None, {}, "tls.enabled"),
    ("PLAINTEXT", "", {}, {}, "does not talk TLS"),
    ("SSL", "", {}, {}, "certificate_file"),
    ("SSL", "", {"ca_file": None}, {}, "ca_file"),
    ("SSL", "", {"server_name": None}, {}, "server_name"),
]


@pytest.mark.parametrize(("listener", "user", "changed", "more", "told"), WRONG)
async def test_who_is_not_let_in_is_told_why(
    ports: dict[str, int],
    tls: KafkaTLSSettings,
    listener: str,
    user: str,
    changed: dict[str, object] | None,
    more: dict[str, object],
    told: str,
) -> None:
    if changed is not None:
        more = {**more, "tls": tls.model_copy(update=changed)}
    login = f"{user}@" if user else ""
    with pytest.raises(BrokerUnavailable, match=told) as caught:
        await round_trip(f"kafka://{login}127.0.0.1:{ports[listener]}", tuned(**more))
    assert "wrong" not in str(caught.value)
