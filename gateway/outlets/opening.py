"""Everything a gateway publishes through, opened: nothing of it need be there yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from forebay.brokers.api import Broker
from forebay.journal.journal import Journal, Opener
from gateway.health import Check
from gateway.metrics import GatewayMetrics
from gateway.outlets.keeping import Keeper, News
from gateway.outlets.late import LateBroker
from gateway.outlets.outlet import Outlet, State
from gateway.outlets.publishing import Outlets
from gateway.queues import QueueRegistry
from gateway.settings import GatewaySettings

log = structlog.get_logger()

BrokerOpener = Callable[[], AbstractAsyncContextManager[Broker]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Where messages can go when the broker is away."""

    broker_takes: int
    """The largest body that broker and fallbacks take, while they cannot be asked."""
    fallbacks: Sequence[tuple[str, BrokerOpener]] = ()
    """Other brokers, each with a name for logs and metrics."""
    open_journal: Opener | None = None
    """Opens a file in `gateway.journal`; None: there is no journal."""
    may_journal: Callable[[str], bool]
    may_fall_back: Callable[[str], bool]


@asynccontextmanager
async def open_outlets(
    opener: BrokerOpener,
    elsewhere: Elsewhere,
    *,
    prepare: Callable[[Broker], Awaitable[None]],
    settings: GatewaySettings,
    queues: QueueRegistry,
    metrics: GatewayMetrics,
) -> AsyncIterator[Outlets]:
    """
    The broker has its budget to be there; then requests are served without it.

    `prepare` is called with the broker whenever it is there, before the first publish.

    Raises:
        SettingsError: one of them can never be used.
    """
    news = News()

    async def declare(fallback: Broker) -> None:
        for queue in queues.names:
            if elsewhere.may_fall_back(queue):
                await fallback.declare(queue)

    def changed() -> None:
        for outlet in outlets:
            metrics.outlet_works.labels(outlet.name).set(outlet.state is not State.AWAY)
        news.tell()

    async with AsyncExitStack() as stack:
        outlets: list[Outlet] = []
        late: list[LateBroker] = []
        for name, how, first in [
            ("broker", opener, prepare),
            *((name, fallback, declare) for name, fallback in elsewhere.fallbacks),
        ]:
            broker = LateBroker(how, first, name=name, max_body_bytes=elsewhere.broker_takes)
            stack.push_async_callback(broker.close)
            outlet = Outlet(name, broker, changed=changed)
            stack.push_async_callback(outlet.close)
            late.append(broker)
            outlets.append(outlet)
        opened = await asyncio.gather(*(broker.first_attempt(settings.broker_budget) for broker in late))
        publisher = Outlets(
            outlets,
            budget=settings.broker_budget,
            may_journal=elsewhere.may_journal,
            may_fall_back=elsewhere.may_fall_back,
            counted=lambda outlet, count: metrics.outlet_messages.labels(outlet).inc(count),
        )
        for outlet, broker, there in zip(outlets, late, opened, strict=True):
            if not there:
                outlet.begin_away(broker.reason)
        changed()
        if elsewhere.open_journal is not None and settings.journal is not None:
            metrics.journal_limit.set(settings.journal_max_bytes)
            keeper = Keeper(
                settings.journal,
                elsewhere.open_journal,
                publisher,
                news,
                max_bytes=settings.journal_max_bytes,
                max_age=settings.journal_max_age,
                seen=lambda journal: _measure(metrics, journal),
            )
            stack.push_async_callback(keeper.close)
            await keeper.open()
        yield publisher


def _measure(metrics: GatewayMetrics, journal: Journal | None) -> None:
    metrics.journal_messages.set(journal.messages if journal else 0)
    metrics.journal_bytes.set(journal.size if journal else 0)
    metrics.journal_set_aside.set(journal.set_aside if journal else 0)
    metrics.journal_oldest.set((journal.oldest_age or 0.0) if journal else 0.0)


def checks(outlets: Outlets) -> list[Check]:
    """For /readyz?verbose: none of these alone makes a gateway unready."""
    found = []
    for outlet in outlets.outlets:
        detail = "works"
        if outlet.state is State.TRIAL:
            detail = "answers a ping again; the next message tries it"
        elif outlet.away_since is not None:
            detail = f"away since {outlet.away_since.isoformat(timespec='seconds')}: {outlet.reason}"
        found.append(Check(name=f"outlet {outlet.name}", ok=True, detail=detail, age=None))
    journal = outlets.journal
    if journal is None:
        detail = outlets.no_journal
    elif not journal.messages:
        detail = "empty" if not journal.set_aside else f"empty, {journal.set_aside} set aside"
    else:
        age = "" if journal.oldest_age is None else f", the oldest {journal.oldest_age:.0f} s old"
        detail = (
            f"holds {journal.messages} messages of {journal.size} bytes{age}, {journal.set_aside} set aside"
        )
    since = outlets.outlets[0].away_since
    if journal is not None and since is not None and not any(o.usable for o in outlets.outlets):
        detail = f"journaling since {since.isoformat(timespec='seconds')}; {detail}"
    found.append(Check(name="journal", ok=True, detail=detail, age=None))
    return found
