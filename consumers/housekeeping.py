"""Deletes what the consumers of this installation no longer need, a little at a time."""

from __future__ import annotations

import asyncio
import random

import structlog

from consumers.sinks.threads import SinkThreads
from forebay.storage import suspects
from forebay.storage.answers import forget_answers
from forebay.storage.database import Database
from forebay.storage.retention import forget_processed

log = structlog.get_logger()

EVERY = 3_600.0
"""Seconds between two rounds, on average; those of several processes spread by themselves."""


SUSPECT_FOR = 86_400.0
"""Seconds after which a message that was in hand when a consumer died is no longer remembered for it."""


class Housekeeper:
    """
    Forgets once-only records that are older than `retention` seconds (None keeps them for ever),
    suspicions that nobody ever cleared, and answers to forwarded requests past their time.
    """

    def __init__(self, database: Database | None, retention: float | None) -> None:
        self._database = database
        self._retention = retention

    async def run(self) -> None:
        """Tidy up for ever; to be cancelled. What fails is tried again in the next round."""
        if self._database is None:
            return
        threads = SinkThreads("forebay-housekeeping")
        try:
            while True:
                await asyncio.sleep(EVERY * random.uniform(0.5, 1.5))
                try:
                    forgotten = await threads.run(self._tidy, self._database)
                except Exception as error:
                    log.info("old records could not be tidied up", reason=str(error))
                else:
                    if forgotten:
                        log.info("forgot once-only records", count=forgotten, older_than=self._retention)
        finally:
            threads.close()

    def _tidy(self, database: Database) -> int:
        suspects.forget(database, older_than=SUSPECT_FOR)
        forget_answers(database, older_than=database.settings.answer_retention)
        return 0 if self._retention is None else forget_processed(database, older_than=self._retention)
