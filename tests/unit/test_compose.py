"""What can be told of docker-compose.yml without an engine; `make compose-test` runs it."""

from __future__ import annotations

import re
import runpy
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.rabbitmq.url import read_url
from forebay.settings import load

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "forebay:local")

SETUP = ROOT / "deploy" / "compose" / "setup.py"


def env_file(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def with_defaults(text: str) -> str:
    """Without any variable set: `${NAME:-default}` is its default, and `${NAME:+...}` nothing."""
    text = re.sub(r"\$\{\w+:\+.*\}$", "", text)
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_loopback(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
    assert SERVICES[name].get("network_mode") != "host"


@pytest.mark.parametrize("name", OURS)
def test_our_services_hold_no_rights_and_write_nowhere_but_in_volumes(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("path", [".env", "deploy/kafka.env"])
def test_each_environment_file_starts_the_broker_that_it_names(path: str) -> None:
    chosen = env_file(path)
    assert chosen["COMPOSE_PROFILES"] == chosen["BROKER"]
    started = [name for name, service in SERVICES.items() if service.get("profiles") == [chosen["BROKER"]]]
    assert started == [chosen["BROKER"]]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    runpy.run_path(str(SETUP))["main"](tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["migrate", "gateway", "consumer"])
def test_our_services_read_settings_that_exist(name: str, secrets: Path) -> None:
    texts = {k: with_defaults(str(v)) for k, v in SERVICES[name]["environment"].items()}
    environ = {k: v.replace("/run/forebay", str(secrets)) for k, v in texts.items()}
    settings = load(environ=environ, cwd=secrets).settings
    assert settings.broker.url is not None
    assert settings.database.url is not None
    assert list(settings.queues) == ["orders"]


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_setup_writes_the_url_of_each_broker(secrets: Path, broker: str) -> None:
    environ = {"FOREBAY_BROKER__URL_FILE": str(secrets / f"{broker}-url")}
    url = load(environ=environ, cwd=secrets).settings.broker.url
    assert url is not None
    assert urlsplit(url.get_secret_value()).hostname == broker


def test_rabbitmq_makes_the_user_of_the_url(secrets: Path) -> None:
    lines = (secrets / "rabbitmq.conf").read_text().splitlines()
    made = dict(line.split(" = ") for line in lines)
    [parameters] = read_url((secrets / "rabbitmq-url").read_text().strip(), RabbitMQSettings())
    assert (made["default_user"], made["default_pass"]) == (
        parameters.credentials.username,
        parameters.credentials.password,
    )


def test_the_database_has_the_password_of_the_url(secrets: Path) -> None:
    url = urlsplit((secrets / "database-url").read_text().strip())
    assert url.password == (secrets / "postgres-password").read_text().strip()
    assert url.hostname == "postgres"


def test_every_installation_gets_passwords_of_its_own(tmp_path: Path) -> None:
    main = runpy.run_path(str(SETUP))["main"]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        main(tmp_path / name)
    assert (tmp_path / "one/database-url").read_text() != (tmp_path / "other/database-url").read_text()
    assert (tmp_path / "one/rabbitmq-url").read_text() != (tmp_path / "other/rabbitmq-url").read_text()


def test_a_second_setup_keeps_what_is_there_and_adds_what_is_missing(secrets: Path) -> None:
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    (secrets / "database-url").unlink()
    (secrets / "rabbitmq-url").unlink()
    runpy.run_path(str(SETUP))["main"](secrets)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before


def test_the_secrets_can_be_read_by_every_container_and_written_by_none(secrets: Path) -> None:
    modes = {stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()}
    assert modes == {0o444}
