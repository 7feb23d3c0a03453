"""The journal of this process and those of dead ones: opened, drained, watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from forebay.errors import BrokerError, BrokerUnavailable, ForebayError
from forebay.journal.draining import PAUSE, Drain
from forebay.journal.files import JournalFile, claim_own, journal_files
from forebay.journal.journal import Journal, Opener, open_journal
from gateway.outlets.publishing import Outlets

log = structlog.get_logger()

LOOK_EVERY = 1.0
"""Seconds between two looks at the age of what is in the journal."""
ADOPT_EVERY = 5.0
"""Seconds between two looks for journals that nobody owns."""
ADOPT_AFTER = 10.0
"""
Seconds for which a journal must have had no owner: one whose process is restarted goes back to that, and the
order of its keys with it.
"""
LAST_DRAIN = 5.0
"""Seconds that a stop may take to empty the journal, while a broker takes messages."""


class News:
    """Wakes all who wait for something to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            pass


class Keeper:
    """
    Keeps the journals of one process.

    Its own is opened at the start, or as soon as that works, and emptied whenever a broker takes
    messages. Journals of dead processes in the same directory are adopted one after the other: emptied,
    then deleted, unless something in them was set aside.
    """

    def __init__(
        self,
        directory: Path,
        opener: Opener,
        outlets: Outlets,
        news: News,
        *,
        max_bytes: int,
        max_age: float,
        seen: Callable[[Journal | None], None],
    ) -> None:
        self._directory = directory
        self._opener = opener
        self._outlets = outlets
        self._news = news
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._seen = seen
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._nothing_in: dict[JournalFile, float] = {}
        """Orphans that have only what was set aside, by when they were written last."""
        self._free_since: dict[JournalFile, float] = {}
        """Since when nobody was seen to own a journal, by the monotonic clock."""

    async def open(self) -> None:
        """
        Open our own journal, if that works now.

        Raises:
            SettingsError: it never will.
        """
        await self._open_own()
        self._tasks = [
            asyncio.create_task(self._watch(), name="journal-watch"),
            asyncio.create_task(self._adopt(), name="journal-orphans"),
        ]

    async def _open_own(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                claim = claim_own(self._directory)
                stack.callback(claim.release)
                journal = await stack.enter_async_context(
                    open_journal(claim, self._opener, max_bytes=self._max_bytes, max_age=self._max_age)
                )
            except BrokerUnavailable as error:
                if self._outlets.no_journal != str(error):
                    log.error("the journal cannot be opened, trying again", reason=str(error))
                self._outlets.no_journal = str(error)
                return
            self._stack.push_async_exit(stack.pop_all())
        self._outlets.journal = journal
        self._seen(journal)
        log.info("journal open", journal=str(claim.file.path), messages=journal.messages, bytes=journal.size)

    # ---- draining our own

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except BrokerError as error:
                log.warning("the journal cannot be looked at", reason=str(error))
            except Exception:
                log.exception("keeping the journal failed")
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        journal = self._outlets.journal
        if journal is None:
            await self._open_own()
            return
        if journal.messages or journal.unsure:
            await journal.look()
        self._begin_drains(journal)
        self._seen(journal)

    def _begin_drains(self, journal: Journal) -> None:
        for queue in journal.queues:
            task = self._drains.get(queue)
            if task is None or task.done():
                self._drains[queue] = asyncio.create_task(
                    self._drain(journal, queue), name=f"journal-drain-{queue}"
                )

    async def _drain(self, journal: Journal, queue: str) -> None:
        """Until the journal has nothing of the queue any more."""
        moved = 0

        def count(more: int) -> None:
            nonlocal moved
            moved += more

        drain = Drain(journal, queue, target=self._outlets.target, moved=count)
        pause = PAUSE[0]
        while journal.holds(queue):
            if self._outlets.target(queue) is None:
                await self._news.wait(LOOK_EVERY)
                continue
            before = moved
            try:
                done = await drain.run_once()
            except BrokerError as error:
                log.warning("draining the journal failed, trying again", queue=queue, reason=str(error))
                done = False
            if done:
                break
            pause = PAUSE[0] if moved > before else min(pause * 2, PAUSE[1])
            await asyncio.sleep(pause)
        if moved:
            log.info("the journal is drained", queue=queue, messages=moved)

    # ---- orphans

    async def _adopt(self) -> None:
        while True:
            try:
                for file in await asyncio.to_thread(self._orphans):
                    await self._take_over(file)
            except (ForebayError, OSError) as error:
                log.warning("the journal of another process cannot be adopted", reason=str(error))
            except Exception:
                log.exception("adopting a journal failed")
            await asyncio.sleep(ADOPT_EVERY)

    def _orphans(self) -> list[JournalFile]:
        now = time.monotonic()
        free = [file for file in journal_files(self._directory) if not file.owned()]
        self._free_since = {file: self._free_since.get(file, now) for file in free}
        return [
            file
            for file, since in self._free_since.items()
            if now - since >= ADOPT_AFTER and self._nothing_in.get(file) != _written(file)
        ]

    async def _take_over(self, file: JournalFile) -> None:
        claim = file.claim()
        if claim is None:
            return  # somebody was quicker
        try:
            async with open_journal(
                claim, self._opener, max_bytes=self._max_bytes, max_age=self._max_age
            ) as journal:
                if journal.messages:
                    log.info(
                        "adopted the journal of a dead process", journal=file.name, messages=journal.messages
                    )
                for queue in journal.queues:
                    await self._drain(journal, queue)
                empty = not journal.messages
            if empty and not journal.set_aside:
                claim.remove()
            elif empty:
                self._nothing_in[file] = _written(file)
        finally:
            claim.release()

    # ---- the end

    async def close(self) -> None:
        """Let go of everything; what can still be handed on in a few seconds is."""
        for task in self._tasks:
            task.cancel()
        journal = self._outlets.journal
        if journal is not None and self._outlets.outlets[0].usable:
            self._begin_drains(journal)
            draining = [task for task in self._drains.values() if not task.done()]
            if draining:
                await asyncio.wait(draining, timeout=LAST_DRAIN)
        tasks = [*self._tasks, *self._drains.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if journal is not None:
            self._outlets.journal = None
            self._outlets.no_journal = "the gateway is stopping"
            if journal.messages:
                log.warning(
                    "stopping with an undrained journal; the next gateway on this directory goes on with it",
                    journal=str(self._directory / journal.name),
                    messages=journal.messages,
                    bytes=journal.size,
                )
        await self._stack.aclose()


def _written(file: JournalFile) -> float:
    try:
        return file.path.stat().st_mtime
    except OSError:
        return 0.0
