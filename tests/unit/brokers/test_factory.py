"""The URL picks the driver; what it cannot pick is said with lines to copy."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pydantic import SecretStr

from forebay.brokers import factory
from forebay.brokers.factory import open_broker, sqlite_path
from forebay.brokers.memory import MemoryBroker
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.settings import BrokerSettings
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.errors import BrokerUnavailable, SettingsError


def settings(url: str | None) -> BrokerSettings:
    return BrokerSettings(url=None if url is None else SecretStr(url))


async def test_memory() -> None:
    async with open_broker(settings("memory://")) as broker:
        assert isinstance(broker, MemoryBroker)


async def test_sqlite_by_absolute_path(tmp_path: Path) -> None:
    async with open_broker(settings(f"sqlite:///{tmp_path}/q.db")) as broker:
        assert isinstance(broker, SQLiteBroker)
    assert "q.db" in os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///forebay-data/queue.db", "forebay-data/queue.db"),
        ("sqlite:////var/lib/queue.db", "/var/lib/queue.db"),
        ("sqlite:///with%20space.db", "with space.db"),
        ("SQLite:///a.db", "a.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    assert sqlite_path(url) == Path(path)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://host/a.db", "sqlite:///:memory:", "sqlite:a"]
)
def test_a_url_without_a_file_gets_examples(url: str) -> None:
    with pytest.raises(SettingsError, match="sqlite:///forebay-data"):
        sqlite_path(url)


def test_no_url_gets_examples() -> None:
    with pytest.raises(SettingsError, match=r"broker\.url is not set"):
        open_broker(settings(None))


async def test_kafka_is_tried() -> None:
    tried = BrokerSettings(url=SecretStr("kafka://127.0.0.1:1"))
    with pytest.raises(BrokerUnavailable, match="Kafka"):
        async with open_broker(tried):
            pass


async def test_rabbitmq_is_tried_and_its_password_never_told() -> None:
    tried = BrokerSettings(
        url=SecretStr("amqp://u:secret@127.0.0.1:1/"), rabbitmq=RabbitMQSettings(connect_timeout=0.2)
    )
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1") as raised:
        async with open_broker(tried):
            pass
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["redis://h", "nonsense", ""])
def test_an_unknown_scheme_gets_examples(url: str) -> None:
    with pytest.raises(SettingsError, match="no driver reads"):
        open_broker(settings(url))


async def test_a_driver_of_somebody_else_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "tests.unit.brokers.test_factory:open_mine", factory.ENTRY_POINTS)
    monkeypatch.setattr(factory, "entry_points", lambda **_: [entry])
    async with open_broker(settings("mine://x")) as broker:
        assert isinstance(broker, MemoryBroker)


def open_mine(url: str, settings: BrokerSettings) -> object:
    assert url == "mine://x"
    return open_broker(settings.model_copy(update={"url": SecretStr("memory://")}))


async def test_without_create_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="there is no queue"):
        async with open_broker(settings(f"sqlite:///{tmp_path}/q.db"), create=False):
            pass
    assert os.listdir(tmp_path) == []
