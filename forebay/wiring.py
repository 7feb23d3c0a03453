"""
The one place that joins the parts: settings in, gateway and consumers out.

Parts never look for each other; what they need is made here and handed to them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import SecretStr

from forebay.errors import BrokerUnavailable, SettingsError
from forebay.settings import Flag, Settings, load
from forebay.settings_sources import variable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from consumers.fleet import Fleet, OldBroker
    from consumers.sinks.forward import Brokers
    from consumers.sinks.settings import TargetSettings
    from consumers.status import QueueStatus
    from consumers.supervisor import Supervisor
    from forebay.admin.app import Admin
    from forebay.brokers.api import Broker
    from forebay.brokers.settings import BrokerSettings
    from forebay.journal.journal import Opener
    from forebay.storage.database import Database
    from gateway.app import Gateway
    from gateway.forward.endpoint import Target
    from gateway.outlets.opening import Elsewhere
    from gateway.schemas import Schema

log = structlog.get_logger()

BrokerOpener = Callable[[], AbstractAsyncContextManager["Broker"]]

EMBEDDED = ("sqlite:", "memory:")

LOG_LEVEL_VARIABLE = "_FOREBAY_LOG_LEVEL"
"""How a worker process learns of --log-level. Not a setting: it belongs to one start."""


def broker_opener(settings: BrokerSettings) -> BrokerOpener:
    """How to open the broker, waiting for one that is somewhere else and not there yet."""
    from forebay.brokers.factory import open_broker

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        url = settings.url.get_secret_value() if settings.url else ""
        wait = 0.5
        async with AsyncExitStack() as stack:
            while True:
                try:
                    broker = await stack.enter_async_context(open_broker(settings))
                    break
                except BrokerUnavailable as error:
                    # A file of ours that cannot be opened will not mend itself. A server will: when all
                    # starts at once it comes up after us, and exiting would only add a supervisor's
                    # back-off to the outage.
                    if url.lower().startswith(EMBEDDED):
                        raise
                    log.warning(
                        "broker unreachable, trying again", reason=str(error), next_try_in=round(wait, 1)
                    )
                    await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                    wait = min(wait * 2, 15.0)
            yield broker

    return opened


def shared(broker: Broker) -> BrokerOpener:
    """A broker that somebody else opened and will close."""

    @asynccontextmanager
    async def lent() -> AsyncIterator[Broker]:
        yield broker

    return lent


def make_database(settings: Settings) -> Database:
    """The database of the settings, not yet connected. Its URL must be set."""
    from forebay.storage.database import Database

    if settings.database.url is None:
        raise ValueError("database.url is not set")
    return Database(settings.database.url.get_secret_value(), settings.database)


def make_gateway(
    settings: Settings,
    *,
    broker: BrokerOpener | None = None,
    on_declared: Callable[[str], None] | None = None,
    registry: CollectorRegistry | None = None,
) -> Gateway:
    """The HTTP side. With `on_declared` any valid queue name is declared on first use."""
    from forebay.brokers.factory import open_broker
    from gateway.app import create_app
    from gateway.queues import QueueRegistry

    elsewhere = make_elsewhere(settings)
    return create_app(
        # With another place for messages the broker is not waited for: it is opened beside.
        broker=broker
        or (broker_opener(settings.broker) if elsewhere is None else lambda: open_broker(settings.broker)),
        settings=settings.gateway,
        queues=QueueRegistry(
            settings.queues,
            declare_on_first_use=on_declared is not None,
            on_declared=on_declared,
        ),
        database=(lambda: make_database(settings)) if settings.database.url else None,
        drained=[safe_url(old) for old in settings.broker.others()],
        elsewhere=elsewhere,
        sources=settings.sources,
        schemas=make_schemas(settings),
        targets={name: _target(name, target) for name, target in settings.forward.items()},
        registry=registry,
    )


def journal_opener(settings: Settings, *, create: bool = True) -> Opener:
    """How to open a file of the journal."""
    from forebay.brokers.factory import open_journal

    most = settings.gateway.max_body_bytes
    return partial(open_journal, settings=settings.broker, max_body_bytes=most, create=create)


def make_schemas(settings: Settings) -> dict[str, Schema]:
    """
    What bodies must fit, by queue.

    Raises:
        SettingsError: a file cannot be read, or is no JSON Schema.
    """
    from gateway.schemas import Schema

    return {
        name: Schema(f"queues.{name}.schema.file", queue.schema_.file)
        for name, queue in settings.queues.items()
        if queue.schema_.file is not None and queue.schema_.mode != "off"
    }


def make_elsewhere(settings: Settings) -> Elsewhere | None:
    """Where a gateway puts messages when its broker is away; None: nowhere."""
    from forebay.brokers.factory import body_limit, open_broker
    from gateway.outlets.opening import Elsewhere

    fallbacks = settings.broker.fallbacks()
    if settings.gateway.journal is None and not fallbacks:
        return None
    limits = [body_limit(one) for one in (settings.broker, *fallbacks)]
    most = settings.gateway.max_body_bytes

    return Elsewhere(
        broker_takes=min([limit for limit in limits if limit is not None], default=most),
        fallbacks=[
            (f"fallback-{number}", partial(open_broker, one)) for number, one in enumerate(fallbacks, 1)
        ],
        open_journal=None if settings.gateway.journal is None else journal_opener(settings),
        may_journal=lambda queue: settings.queue(queue).journaled,
        may_fall_back=lambda queue: settings.queue(queue).order != "key",
    )


def _target(name: str, settings: TargetSettings) -> Target:
    from gateway.forward.endpoint import Target

    return Target(
        queue=settings.queue or name,
        methods=settings.methods,
        keep_headers=settings.keep_headers,
        wait=settings.wait,
        one_by_one=settings.order == "all",
    )


def make_admin(settings: Settings, *, tokens: Mapping[str, str], broker: BrokerOpener | None = None) -> Admin:
    """The admin API, for holders of `tokens`, by name."""
    from forebay.admin.app import create_app
    from forebay.brokers.factory import open_broker

    return create_app(
        database=lambda: make_database(settings),
        # Not `broker_opener`: it opens beside, tries again by itself, and never makes a queue file.
        broker=broker or (lambda: open_broker(settings.broker, create=False)),
        tokens=tokens,
        queues=list(settings.queues),
    )


def gateway_app() -> Gateway:
    """The gateway of one worker process; flags reach it as variables (see `to_environment`)."""
    from forebay import telemetry

    telemetry.configure(os.environ.get(LOG_LEVEL_VARIABLE, "info"))
    return make_gateway(load().settings, registry=start_telemetry("forebay-gateway"))


def to_environment(flags: Iterable[Flag], config: Path | None, log_level: str) -> None:
    """Put what the command line said where worker processes, which read the settings again, find it."""
    for flag in flags:
        if flag.value is not None:
            os.environ[variable(tuple(flag.setting.split(".")))] = str(flag.value)
    if config is not None:
        os.environ["FOREBAY_CONFIG"] = str(config)
    os.environ[LOG_LEVEL_VARIABLE] = log_level


def make_fleet(
    settings: Settings,
    broker: Broker,
    database: Database,
    *,
    registry: CollectorRegistry,
) -> Fleet:
    """
    The consumers of this process, on `broker` and on those to drain; add queues to it.

    Raises:
        SettingsError: no driver reads the URL of one to drain, or spans cannot be sent.
    """
    from stamina.instrumentation import set_on_retry_hooks

    from consumers.controls import ControlRoom
    from consumers.fleet import Fleet
    from consumers.gauges import FleetGauges
    from consumers.housekeeping import Housekeeper
    from consumers.reporter import Reporter, Watched, process_name
    from consumers.sinks.factory import make_sink
    from consumers.sinks.traced import traced
    from consumers.supervisor import Supervisor
    from forebay.brokers.factory import room
    from forebay.otel import configure_tracing

    # The store says itself what it tries again; these would say it once more, and say it
    # worse. Before handlers are loaded: one that wants them for retries of its own sets them.
    set_on_retry_hooks(())

    configure_tracing("forebay-consumer")
    in_use = broker

    def consumers_of(broker: Broker, beside: Supervisor | None = None) -> Supervisor:
        brokers = forwarding(settings, shared(in_use), source=broker, drains=beside is not None)
        return Supervisor(
            broker,
            settings.consumer,
            database=database,
            make_sink=lambda queue, of_queue: traced(make_sink(queue, of_queue, database, brokers), queue),
            registry=registry,
            beside=beside,
        )

    current = consumers_of(broker)
    url = safe_url(settings.broker)
    name = process_name()
    fleet = Fleet(
        Watched(current, url),
        old=old_brokers(settings.broker),
        make_old=lambda old: consumers_of(old, beside=current),
        # What is in memory ends with us: nobody need know of it.
        reporter=Reporter(None if url.startswith("memory:") else database, name),
        controls=ControlRoom(database, current.flows, current.quarantine, name=name),
        housekeeper=Housekeeper(database, settings.database.once_only_retention),
    )
    registry.register(
        FleetGauges(fleet, lambda of_queue, of_all: room(settings.broker, of_queue=of_queue, of_all=of_all))
    )
    return fleet


def start_telemetry(service: str) -> CollectorRegistry:
    """
    For the figures of this process, with what the system knows of it.

    They and its spans are exported under the name `service`, if OpenTelemetry's variables ask for it.

    Raises:
        SettingsError: they do, and it is not installed.
    """
    from prometheus_client import CollectorRegistry, Info, PlatformCollector, ProcessCollector

    from forebay import __version__
    from forebay.otel import configure_tracing, export_figures

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Info("forebay_build", "Which Forebay this is.", registry=registry).info({"version": __version__})
    configure_tracing(service)
    export_figures(service, registry)
    return registry


def forwarding(
    settings: Settings,
    current: BrokerOpener | None = None,
    *,
    source: Broker | None = None,
    drains: bool = False,
) -> Brokers:
    """What the sink `broker` may publish to; without `current`, what it may look at, and nothing is made."""
    from consumers.sinks.forward import Brokers
    from forebay.brokers.factory import open_broker

    def other(url: str) -> BrokerOpener:
        # With the same tables for the drivers, as a broker to drain has.
        of_url = settings.broker.model_copy(update={"url": SecretStr(url), "drain": ()})
        try:
            open_broker(of_url)  # Only made, not entered: nothing is opened yet.
        except SettingsError as error:
            raise SettingsError(f"forward.broker_url: {error}") from None
        return lambda: open_broker(of_url, create=not looking)

    looking = current is None
    url = settings.broker.url.get_secret_value() if settings.broker.url else ""
    return Brokers(
        url=url,
        current=current or (lambda: open_broker(settings.broker, create=False)),
        other=other,
        source=source,
        looking=looking,
        drains=drains,
    )


def safe_url(settings: BrokerSettings) -> str:
    """How a broker is reached, without credentials."""
    from forebay.settings_schema import shown

    return str(shown(settings.url))


def old_brokers(settings: BrokerSettings) -> list[OldBroker]:
    """
    The brokers to consume beside the one in use, not yet opened: those to drain, and the fallbacks.

    Raises:
        SettingsError: no driver reads the URL of one.
    """
    from consumers.fleet import OldBroker
    from forebay.brokers.factory import open_broker

    def of(old: BrokerSettings, *, fallback: bool) -> OldBroker:
        try:
            open_broker(old)  # Only made, not entered: nothing is opened yet.
        except SettingsError as error:
            raise SettingsError(f"broker.{'fallback' if fallback else 'drain'}: {error}") from None
        return OldBroker(url=safe_url(old), open=lambda: open_broker(old, create=fallback), fallback=fallback)

    return [
        *(of(old, fallback=False) for old in settings.old()),
        *(of(one, fallback=True) for one in settings.fallbacks()),
    ]


@asynccontextmanager
async def serve_consumer_health(
    settings: Settings, snapshot: Callable[[], Sequence[QueueStatus]], registry: CollectorRegistry
) -> AsyncIterator[None]:
    """/livez, /readyz and /metrics of `forebay consume`, if a port is set for them."""
    port = settings.consumer.health_port
    if port is None:
        yield
        return
    from consumers.health import serve_health

    host = settings.consumer.health_host
    async with serve_health(host, port, snapshot, registry) as bound:
        log.info("health checks and figures are served", host=host, port=bound)
        yield


def find_handlers(*folders: Path) -> None:
    """
    Let handlers be imported from these folders, as `python -m` would from its own.

    The installed command's own folder is the one on Python's path, never the project's.
    """
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
