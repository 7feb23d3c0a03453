"""What can be told of docker-compose.yml without an engine; `make compose-test` runs it."""

from __future__ import annotations

import re
import runpy
import shlex
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.rabbitmq.url import read_url
from forebay.settings import Settings, load
from gateway.keys_file import changing, digest_of, make, read

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = sorted(name for name, service in SERVICES.items() if "forebay:local" in service["image"])

SETUP = runpy.run_path(str(ROOT / "deploy" / "compose" / "setup.py"))


def with_defaults(text: str) -> str:
    """Without any variable set: `${NAME:-default}` is its default, and `${NAME:+...}` nothing."""
    text = re.sub(r"\$\{\w+:\+.*\}$", "", text)
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


def test_only_nginx_is_published_and_on_loopback() -> None:
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["nginx"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["nginx"]["ports"])
    assert not [name for name, service in SERVICES.items() if service.get("network_mode") == "host"]


@pytest.mark.parametrize(
    "name", sorted({*OURS, "nginx", "postgres", "rabbitmq", "kafka", "prometheus", "grafana"})
)
def test_a_service_holds_no_rights_and_writes_nowhere_but_in_volumes(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["gateway", "consumer"])
def test_the_grace_period_is_longer_than_a_stop_may_take(name: str, secrets: Path) -> None:
    settings = settings_of(name, secrets)
    needed = {
        # What is left in the journal is handed on for 5 s.
        "gateway": settings.gateway.drain_delay + settings.gateway.shutdown_timeout + 5,
        "consumer": settings.consumer.shutdown_timeout,
    }
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > needed[name]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    SETUP["prepare"](tmp_path)
    return tmp_path


def settings_of(name: str, secrets: Path) -> Settings:
    texts = {k: with_defaults(str(v)) for k, v in SERVICES[name]["environment"].items()}
    environ = {k: v.replace("/run/forebay", str(secrets)) for k, v in texts.items()}
    return load(environ=environ, cwd=secrets).settings


@pytest.mark.parametrize("name", ["migrate", "gateway", "consumer"])
def test_our_services_read_settings_that_exist(name: str, secrets: Path) -> None:
    settings = settings_of(name, secrets)
    assert settings.broker.url is not None
    assert settings.database.url is not None
    assert list(settings.queues) == ["orders", "forebay-canary"]


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_setup_writes_the_url_of_each_broker(secrets: Path, broker: str) -> None:
    environ = {"FOREBAY_BROKER__URL_FILE": str(secrets / f"{broker}-url")}
    url = load(environ=environ, cwd=secrets).settings.broker.url
    assert url is not None
    # The name that stands for every node of it.
    host = urlsplit(url.get_secret_value()).hostname
    nodes = [
        n for n, s in SERVICES.items() if host in s.get("networks", {}).get("default", {}).get("aliases", [])
    ]
    assert nodes == [broker, f"{broker}-2", f"{broker}-3"]


def test_rabbitmq_makes_the_user_of_the_url(secrets: Path) -> None:
    lines = (secrets / "rabbitmq.conf").read_text().splitlines()
    made = dict(line.split(" = ") for line in lines)
    assert (secrets / "rabbitmq-joins.conf").read_text().splitlines()[: len(lines)] == lines
    [parameters] = read_url((secrets / "rabbitmq-url").read_text().strip(), RabbitMQSettings())
    assert (made["default_user"], made["default_pass"]) == (
        parameters.credentials.username,
        parameters.credentials.password,
    )


@pytest.mark.parametrize("database", ["postgres", "mysql"])
def test_the_database_has_the_password_of_the_url(secrets: Path, database: str) -> None:
    url = urlsplit((secrets / f"{database}-url").read_text().strip())
    assert url.password == (secrets / f"{database}-password").read_text().strip()
    assert url.hostname == database
    assert f"/run/forebay/{database}-password" in SERVICES[database]["environment"].values()


def test_every_installation_gets_passwords_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        SETUP["prepare"](tmp_path / name)
    assert (tmp_path / "one/postgres-url").read_text() != (tmp_path / "other/postgres-url").read_text()
    assert (tmp_path / "one/rabbitmq-url").read_text() != (tmp_path / "other/rabbitmq-url").read_text()


def test_a_second_setup_keeps_what_is_there_and_adds_what_is_missing(secrets: Path) -> None:
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    (secrets / "postgres-url").unlink()
    (secrets / "rabbitmq-url").unlink()
    SETUP["prepare"](secrets)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before


def test_what_is_not_secret_follows_from_what_is(secrets: Path) -> None:
    """An installation of an older release has files that say too little."""
    (secrets / "rabbitmq.conf").unlink()
    (secrets / "rabbitmq.conf").write_text("default_user = forebay\n")
    SETUP["prepare"](secrets)
    assert "default_pass" in (secrets / "rabbitmq.conf").read_text()


def test_others_read_only_what_is_theirs_and_nobody_writes(secrets: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()}
    readable = {name for name, mode in modes.items() if mode == 0o444}
    passwords = {f"{name}-password" for name in ("postgres", "mysql", "rabbitmq", "grafana")}
    assert readable == passwords | {"erlang-cookie", "rabbitmq.conf", "rabbitmq-joins.conf"}
    assert {mode for name, mode in modes.items() if name not in readable} == {0o400, 0o600}


def test_show_prints_a_request_with_a_key_that_the_gateways_know(secrets: Path) -> None:
    text = SETUP["show"](secrets, "http://127.0.0.1:8080", "http://127.0.0.1:8081")
    command = shlex.split(text.split("\n\n")[0], comments=True)
    assert command[:3] == ["curl", "-i", "http://127.0.0.1:8080/v1/queues/orders/messages"]
    [key] = [
        word.removeprefix("Authorization: Bearer ") for word in command if word.startswith("Authorization")
    ]
    assert [known.sha256 for known in read(secrets / "api-keys.json").keys] == [digest_of(key.encode())]


def test_other_api_keys_outlive_a_setup_that_makes_its_own_anew(secrets: Path) -> None:
    with changing(secrets / "api-keys.json") as keys:
        keys.append(make("shop", queues=("orders",))[1])
    (secrets / "api-key").unlink()
    SETUP["prepare"](secrets)
    assert [key.name for key in read(secrets / "api-keys.json").keys] == ["shop", "compose"]


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("*.env")), ids=lambda path: path.name)
def test_an_environment_file_sets_what_the_compose_file_or_a_service_asks_for(path: Path) -> None:
    asked = set(re.findall(r"\$\{(\w+):", (ROOT / "docker-compose.yml").read_text())) | {"COMPOSE_PROFILES"}
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines)
    assert {name for name in settings if not name.startswith("FOREBAY_")} <= asked
    load(environ={k: v for k, v in settings.items() if k.startswith("FOREBAY_")}, cwd=path.parent)
