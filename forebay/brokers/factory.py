"""From a URL to an open broker: the only place that names the drivers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from forebay.brokers.api import Broker
from forebay.brokers.settings import BrokerSettings
from forebay.errors import SettingsError

if TYPE_CHECKING:
    from forebay.brokers.sqlite.rescue import Rescue

ENTRY_POINTS = "forebay.brokers"

EXAMPLES = """\
  broker.url = "sqlite:///forebay-data/queue.db"    a file, relative to the current directory
  broker.url = "sqlite:////var/lib/forebay/queue.db"  a file, by its absolute path
  broker.url = "amqp://user:password@host:5672,host2:5672/vhost"  RabbitMQ (amqps: encrypted)
  broker.url = "kafka://host:9092,host2:9092"       Kafka
  broker.url = "memory://"                          for tests: gone with the process"""

Driver = Callable[[str, BrokerSettings], AbstractAsyncContextManager[Broker]]
"""What an entry point of the group `forebay.brokers`, named as the URL's scheme, refers to."""


def open_broker(settings: BrokerSettings, *, create: bool = True) -> AbstractAsyncContextManager[Broker]:
    """
    The broker that `settings.url` names; its connections live as long as the context.

    Without `create` an embedded queue that does not exist is not made: for commands
    that only read.

    Raises:
        SettingsError: there is no URL, or no driver reads it. Also on entering the
            context, for what only the driver can find out.
        BrokerUnavailable: on entering the context.
    """
    if settings.url is None:
        raise SettingsError(f"broker.url is not set; write one of\n{EXAMPLES}")
    url = settings.url.get_secret_value()
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        return _open_memory()
    if scheme == "sqlite":
        return _open_sqlite(sqlite_path(url), settings, create)
    if scheme in ("amqp", "amqps"):
        return _open_rabbitmq(url, settings)
    if scheme == "kafka":
        return _open_kafka(url, settings)
    return _driver(scheme)(url, settings)


@contextlib.asynccontextmanager
async def open_journal(
    path: Path, settings: BrokerSettings, *, max_body_bytes: int, create: bool = True
) -> AsyncIterator[Broker]:
    """
    An embedded queue at `path` that lends delayed messages at once: whoever takes them on keeps their time.

    It is bounded by the disk only (`broker.sqlite.min_free_bytes`).

    Raises:
        SettingsError, BrokerUnavailable: on entering the context.
    """
    from forebay.brokers.sqlite.broker import SQLiteBroker

    tuned = settings.sqlite.model_copy(update={"max_bytes": 2**62, "max_body_bytes": max_body_bytes})
    async with SQLiteBroker.open(path, tuned, create=create, at_once=True) as broker:
        yield broker


def damage(path: Path, *, in_full: bool) -> str | None:
    """
    What is wrong with an embedded queue's file that nobody else uses; None if it is sound, or not there.

    It is read to its end if `in_full`, and after a crash.

    Raises:
        BrokerUnavailable: it cannot be read now.
    """
    from forebay.brokers.sqlite.rescue import damage

    return damage(path, in_full=in_full)


def rescue(path: Path) -> Rescue:
    """What can be read of an embedded queue's file that nobody else uses."""
    from forebay.brokers.sqlite.rescue import Rescue

    return Rescue(path)


def body_limit(settings: BrokerSettings) -> int | None:
    """The largest body that the broker of `settings.url` takes, by the settings alone; None: not known."""
    scheme = "" if settings.url is None else settings.url.get_secret_value().partition(":")[0].lower()
    return {
        "sqlite": settings.sqlite.max_body_bytes,
        "amqp": settings.rabbitmq.max_body_bytes,
        "amqps": settings.rabbitmq.max_body_bytes,
        "kafka": settings.kafka.max_body_bytes,
    }.get(scheme)


def room(settings: BrokerSettings, *, of_queue: int, of_all: int) -> int | None:
    """
    Bytes of bodies that a queue still takes while it holds `of_queue`, and all queues `of_all`.

    By the settings, and of an embedded queue by its disk, too; None: not bounded by us.
    """
    scheme = "" if settings.url is None else settings.url.get_secret_value().partition(":")[0].lower()
    if scheme in ("amqp", "amqps"):
        return max(0, settings.rabbitmq.max_bytes - of_queue)
    if scheme != "sqlite" or settings.url is None:
        return None
    try:
        disk = os.statvfs(sqlite_path(settings.url.get_secret_value()).parent)
    except OSError:
        return None
    low_water = min(settings.sqlite.min_free_bytes, disk.f_blocks * disk.f_frsize // 20)
    free = disk.f_bavail * disk.f_frsize - low_water
    return max(0, min(settings.sqlite.max_bytes - of_all, free))


def sqlite_path(url: str) -> Path:
    """
    The file that a `sqlite:` URL names: three slashes and a relative path, or four and an absolute one.

    Raises:
        SettingsError
    """
    parts = urlsplit(url)
    path = unquote(parts.path)[1:]
    if (
        not url.lower().startswith("sqlite:///")
        or parts.query
        or parts.fragment
        or path.strip("/") in ("", ":memory:")
    ):
        raise SettingsError(f"broker.url {url!r} names no file; write one of\n{EXAMPLES}")
    return Path(path)


def _driver(scheme: str) -> Driver:
    for found in entry_points(group=ENTRY_POINTS, name=scheme):
        driver: Driver = found.load()
        return driver
    # Never the URL itself: it may hold a password.
    raise SettingsError(f"broker.url begins with {scheme!r}, which no driver reads; write one of\n{EXAMPLES}")


@contextlib.asynccontextmanager
async def _open_memory() -> AsyncIterator[Broker]:
    from forebay.brokers.memory import MemoryBroker

    broker = MemoryBroker()
    try:
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def _open_sqlite(path: Path, settings: BrokerSettings, create: bool) -> AsyncIterator[Broker]:
    from forebay.brokers.sqlite.broker import SQLiteBroker

    async with SQLiteBroker.open(path, settings.sqlite, create=create) as broker:
        yield broker


@contextlib.asynccontextmanager
async def _open_rabbitmq(url: str, settings: BrokerSettings) -> AsyncIterator[Broker]:
    from forebay.brokers.rabbitmq.broker import RabbitMQBroker

    async with RabbitMQBroker.open(url, settings.rabbitmq) as broker:
        yield broker


@contextlib.asynccontextmanager
async def _open_kafka(url: str, settings: BrokerSettings) -> AsyncIterator[Broker]:
    from forebay.brokers.kafka.broker import KafkaBroker

    async with KafkaBroker.open(url, settings.kafka) as broker:
        yield broker
