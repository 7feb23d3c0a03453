"""Questions to the database, under a deadline, so that taking messages in is not touched."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

if TYPE_CHECKING:
    from forebay.storage.database import Database

log = structlog.get_logger()

T = TypeVar("T")

TIMEOUT = 3.0
THREADS = 4
MAX_WAITING = 32
"""Questions in work; a dead database must not gather requests in our memory."""


class NoAnswer(Exception):
    """The database was not asked, or did not answer; the text is a clause: "it cannot be reached"."""


class Questions:
    """
    Asked in threads of their own: however dead the database is, a question ends within `timeout`.

    `database` None: there is none.
    """

    def __init__(self, database: Callable[[], Database] | None, *, timeout: float = TIMEOUT) -> None:
        self._open = database
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="status")
        self._opening = threading.Lock()
        self._database: Database | None = None
        self._waiting = 0
        self._failing = False

    async def ask(self, question: Callable[[Database], T]) -> T:
        """
        What `question` returns, in a thread.

        Raises:
            NoAnswer
        """
        if self._open is None:
            raise NoAnswer("this gateway has no database URL")
        if self._waiting >= MAX_WAITING:
            raise NoAnswer("too many look-ups wait for it")
        self._waiting += 1
        asked = asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question)
        asked.add_done_callback(self._ended)
        try:
            # Shielded: the thread cannot be stopped, and counts as waiting until it ends.
            answer = await asyncio.wait_for(asyncio.shield(asked), self._timeout)
        except TimeoutError:
            self._note(f"no answer within {self._timeout:g} s")
            raise NoAnswer("it does not answer in time") from None
        except Exception as error:
            # Any error at all is the database's trouble here, not the client's.
            self._note(f"{type(error).__name__}: {error}")
            raise NoAnswer("it cannot be reached") from error
        self._note(None)
        return answer

    def _note(self, trouble: str | None) -> None:
        """Tell the log once when trouble begins, and once when it is over: many may ask meanwhile."""
        if trouble is not None and not self._failing:
            log.warning("status look-ups fail", error=trouble)
        elif trouble is None and self._failing:
            log.info("status look-ups succeed again")
        self._failing = trouble is not None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._database is not None:
            self._database.dispose()

    def _ended(self, asked: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not asked.cancelled():
            asked.exception()  # seen, also when nobody waits for it any more

    def _answer(self, question: Callable[[Database], T]) -> T:
        with self._opening:
            if self._database is None:
                assert self._open is not None
                self._database = self._open()
        return question(self._database)
