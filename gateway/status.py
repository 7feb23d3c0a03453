"""What became of a message: the database's word, and this process's memory until it has one."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from forebay.ids import canonical
from gateway.answer import Answer
from gateway.problems import INVALID_REQUEST, NOT_SEEN_YET, STATUS_UNAVAILABLE, problem
from gateway.recent import RecentIds

if TYPE_CHECKING:
    from forebay.storage.database import Database

log = structlog.get_logger()

TIMEOUT = 3.0
THREADS = 4
MAX_WAITING = 32
"""Look-ups in work; a dead database must not gather requests in our memory."""


class StatusLookup:
    """
    Answers GET /v1/messages/{id}.

    The database is asked in threads of its own, under a deadline: however dead it
    is, taking messages in is not touched.
    """

    def __init__(
        self, database: Callable[[], Database] | None, recent: RecentIds, *, timeout: float = TIMEOUT
    ) -> None:
        self._open = database
        self._recent = recent
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="status")
        self._opening = threading.Lock()
        self._database: Database | None = None
        self._waiting = 0

    async def answer(self, text: str) -> Answer:
        message_id = canonical(text)
        if message_id is None:
            return problem(
                INVALID_REQUEST, "A message id is a UUID, like: 01890a5d-ac96-774b-bcce-b302099a8057"
            )
        accepted = self._recent.get(message_id)
        if self._open is None:
            return self._unavailable(message_id, "this gateway has no database URL", accepted is not None)
        if self._waiting >= MAX_WAITING:
            return self._unavailable(message_id, "too many look-ups wait for it", accepted is not None)
        self._waiting += 1
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, self._query, message_id)
        lookup.add_done_callback(self._ended)
        try:
            # Shielded: the thread cannot be stopped, and counts as waiting until it ends.
            found = await asyncio.wait_for(asyncio.shield(lookup), self._timeout)
        except TimeoutError:
            return self._unavailable(message_id, "it does not answer in time", accepted is not None)
        except Exception as error:
            # Any error at all is the database's trouble here, not the client's.
            log.warning("status look-up failed", error=type(error).__name__)
            return self._unavailable(message_id, "it cannot be reached", accepted is not None)
        if found is not None:
            return _json(found)
        if accepted is not None:
            queue, accepted_at = accepted
            return _json({"id": message_id, "state": "accepted", "queue": queue, "accepted_at": accepted_at})
        return problem(NOT_SEEN_YET, NOT_SEEN_YET.advice, id=message_id)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._database is not None:
            self._database.dispose()

    def _ended(self, lookup: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not lookup.cancelled():
            lookup.exception()  # seen, also when nobody waits for it any more

    def _query(self, message_id: str) -> dict[str, object] | None:
        # Only here: a gateway without a database loads nothing of it.
        from forebay.storage.queries import message_status

        with self._opening:
            if self._database is None:
                assert self._open is not None
                self._database = self._open()
        found = message_status(self._database, message_id)
        if found is None:
            return None
        return {n: v for n, v in dataclasses.asdict(found).items() if v is not None}

    def _unavailable(self, message_id: str, why: str, accepted: bool) -> Answer:
        seen = " This gateway accepted the message lately." if accepted else ""
        return problem(
            STATUS_UNAVAILABLE,
            f"The message's state is in the database: {why}.{seen}",
            id=message_id,
            accepted=accepted,
        )


def _json(document: dict[str, Any]) -> Answer:
    body = orjson.dumps(document)
    return Answer(
        status=200,
        headers=[(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        body=body,
    )
