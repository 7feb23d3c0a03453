"""One look at everything that `forebay status` tells of; whatever does not answer is told as such."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from forebay.cli._depths import Brokers, QueueDepth, completed, known_queues, look, open_brokers
from forebay.cli._scrape import Asked, Whom, ask, consumers_of, gateways_of
from forebay.errors import ForebayError, SettingsError
from forebay.figures import Place, Reported

if TYPE_CHECKING:
    import aiohttp

    from consumers.sinks.threads import SinkThreads
    from forebay.settings import Settings
    from forebay.storage.controls import Control
    from forebay.storage.database import Database
    from forebay.storage.reports import LastSeen

BROKER_TIMEOUT = 5.0
DATABASE_TIMEOUT = 6.0
"""A little more than database.connect_timeout, whose error says more."""
TRY_AGAIN = 5.0
"""Seconds for which one that did not answer is not asked again: the others' news must not wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the database tells."""

    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """Open ones, by queue."""
    paused: Mapping[str, str] = field(default_factory=dict)
    """Why, by queue, as consumers reported some seconds ago."""
    controls: Mapping[str, Control] = field(default_factory=dict)
    """Those that pause a queue, by queue: what operators said, or a consumer in distress."""
    last_seen: Mapping[str, LastSeen] = field(default_factory=dict)
    """What queues of the broker in use held, with their dead-letter queues."""
    consumers: int | None = None
    """Processes that have reported lately; None: nobody can tell."""
    reports: Mapping[Place, Reported] = field(default_factory=dict)
    trouble: str = ""
    """Why it did not answer."""
    named: bool = True
    """Its URL is in the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    at: float
    """By the monotonic clock."""
    depths: list[QueueDepth]
    """Nothing while the broker does not answer."""
    broker_trouble: str = ""
    unreached: tuple[str, ...] = ()
    """Old brokers and fallbacks, each with the reason."""
    stored: Stored = field(default_factory=Stored)
    gateways: Asked = field(default_factory=Asked)
    consumers: Asked = field(default_factory=Asked)
    journaled: Mapping[str, int] | None = None
    """By queue, of all journals in the directory of the settings; None: it is not on this host."""


class Trouble:
    """Why somebody did not answer."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._until = time.monotonic() + TRY_AGAIN

    @property
    def lasts(self) -> bool:
        return bool(self.reason) and time.monotonic() < self._until


class Looker:
    """Keeps what can be kept open from one look to the next; an asynchronous context."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._brokers_stack = AsyncExitStack()
        self._brokers: Brokers | None = None
        self._database: Database | None = None
        self._broker_trouble = self._database_trouble = Trouble("")
        self._gateways, self._consumers = gateways_of(settings), consumers_of(settings)

    async def __aenter__(self) -> Looker:
        import aiohttp

        # Also what is used later: on a busy machine importing it takes seconds, which are not the database's.
        from consumers.sinks.threads import SinkThreads
        from forebay.storage import controls, reports  # noqa: F401

        self._session: aiohttp.ClientSession = await self._stack.enter_async_context(aiohttp.ClientSession())
        # A database that hangs must not keep the command from ending.
        self._threads: SinkThreads = SinkThreads("forebay-status", 2)
        self._stack.callback(self._threads.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close_brokers()
        if self._database is not None:
            self._database.dispose()
        await self._stack.aclose()

    async def look(self) -> Look:
        """
        Ask all at once.

        Raises:
            SettingsError: the broker's URL is not set, or no driver reads it.
        """
        found, gateways, consumers, journaled = await asyncio.gather(
            self._depths(), self._ask(self._gateways), self._ask(self._consumers), self._journals()
        )
        depths, trouble = found
        identities = {depth.broker for depth in depths}
        stored = await self._stored(identities)
        reports: Mapping[Place, Reported] | str = stored.reports
        if stored.trouble:
            reports = "the database, where consumers report the rest, does not answer"
        elif not stored.named:
            reports = "database.url, where consumers report the rest, is not set here"
        return Look(
            at=time.monotonic(),
            depths=[completed(depth, reports) for depth in depths],
            broker_trouble=trouble,
            unreached=tuple(self._brokers.unreached) if self._brokers else (),
            stored=stored,
            gateways=gateways,
            consumers=consumers,
            journaled=journaled,
        )

    # ---- the broker

    async def _depths(self) -> tuple[list[QueueDepth], str]:
        if self._broker_trouble.lasts:
            return [], self._broker_trouble.reason
        try:
            if self._brokers is None:
                async with asyncio.timeout(BROKER_TIMEOUT):
                    self._brokers = await self._brokers_stack.enter_async_context(
                        open_brokers(self._settings)
                    )
            async with asyncio.timeout(BROKER_TIMEOUT):
                queues = await known_queues(self._brokers, self._settings.queues)
                return await look(self._brokers, queues), ""
        except SettingsError:
            raise
        except ForebayError as error:
            self._broker_trouble = Trouble(str(error))
        except TimeoutError:
            self._broker_trouble = Trouble(f"no answer within {BROKER_TIMEOUT:g} s")
        await self._close_brokers()
        return [], self._broker_trouble.reason

    async def _close_brokers(self) -> None:
        self._brokers = None
        stack, self._brokers_stack = self._brokers_stack, AsyncExitStack()
        try:
            await stack.aclose()
        except ForebayError:
            pass  # It is gone; there is nothing to be handed back.

    # ---- the database

    async def _stored(self, brokers: set[str]) -> Stored:
        if self._settings.database.url is None:
            return Stored(named=False)
        if not self._database_trouble.lasts:
            try:
                async with asyncio.timeout(DATABASE_TIMEOUT):
                    return await self._threads.run(partial(self._ask_database, brokers))
            except TimeoutError:
                self._database_trouble = Trouble(f"no answer within {DATABASE_TIMEOUT:g} s")
            except ForebayError as error:
                self._database_trouble = Trouble(str(error))
        return Stored(trouble=self._database_trouble.reason)

    def _ask_database(self, brokers: set[str]) -> Stored:
        from forebay.cli._common import existing_database
        from forebay.storage import controls, reports
        from forebay.wiring import safe_url

        database = self._database = self._database or existing_database(self._settings)
        paused = {p.queue: p.reason for p in reports.paused_queues(database)}
        return Stored(
            dead_letters=reports.open_dead_letters(database),
            paused=paused,
            controls={c.queue: c for c in controls.read(database).values() if c.paused},
            last_seen=reports.last_seen(database, safe_url(self._settings.broker)) if not brokers else {},
            consumers=reports.consumers_alive(database),
            reports=reports.read_reports(database, brokers) if brokers else {},
        )

    # ---- processes and journals

    async def _ask(self, whom: Whom) -> Asked:
        return await ask(self._session, whom)

    async def _journals(self) -> Mapping[str, int] | None:
        from forebay.journal.files import journal_files
        from forebay.journal.looking import look as look_into
        from forebay.wiring import journal_opener

        directory = self._settings.gateway.journal
        if directory is None or not directory.is_dir():
            return None
        held: dict[str, int] = {}
        opener = journal_opener(self._settings, create=False)
        for file in journal_files(directory):
            for queue, count in ((await look_into(file, opener)).queues or {}).items():
                held[queue] = held.get(queue, 0) + count
        return held
