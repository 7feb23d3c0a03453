"""Requests that wait to hear what became of their message: one query for all of them, now and again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import Receive

from forebay.ids import conflict_id_from_digest
from gateway.answer import Answer
from gateway.asking import NoAnswer, Questions

if TYPE_CHECKING:
    from forebay.storage.answers import KeptAnswer
    from forebay.storage.database import Database
    from forebay.storage.states import MessageStatus

FASTEST, SLOWEST = 0.05, 0.5
"""Seconds between two queries: for messages that have just come, and for those that have waited for long."""
LOAD = 3
"""A pause is this many times as long as the query before it took, so that a slow database is not pressed."""
PATIENCE, MAX_PATIENCE = 0.5, 5.0
"""Seconds without any query after one that the database did not answer; they double."""

OVER = frozenset({"stored", "done", "dead", "discarded"})
"""States in which nothing more happens by itself."""

ARRIVED = frozenset({"stored", "done"})


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """The message that somebody waits for."""

    id: str
    digest: bytes | None = None
    """
    SHA-256 of its body, where others may have come under its id: those with an idempotency key. None: there
    is only one message of this id, or any will do.
    """
    answer: bool = False
    """Whether what a service answered is wanted, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What became of it."""

    status: MessageStatus
    answer: KeptAnswer | None = None
    """Only with a body that is complete."""


ANSWERS = 100
"""Answers of services that are fetched at once, with their bodies; the others come with the next query."""

Found = dict[Wanted, Told]
Look = Callable[[list[Wanted]], Awaitable[Found]]
"""
What became of these messages; those with which it is not over are absent.

Raises:
    NoAnswer
"""


class Waiting:
    """
    Those who wait, and the one task that asks for them.

    It asks about all of them in one query, sooner for those that have just come, and not at all when nobody
    waits. When the database does not answer nobody asks but it, less and less often: the others wait on.
    At most `most` wait at once; `counted` is told how many, whenever that changes.
    """

    def __init__(self, look: Look, *, most: int, counted: Callable[[int], object] = lambda _: None) -> None:
        self._look = look
        self._most = most
        self._counted = counted
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[asyncio.Future[Told], Wanted] = {}
        self._came = asyncio.Event()
        self._youngest = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def takes_more(self) -> bool:
        """Whether another request may wait. One that may not is answered at once."""
        return not self._closed and len(self._waiters) < self._most

    async def outcome(self, wanted: Wanted, seconds: float, receive: Receive) -> Told | None:
        """
        The state of a message once it is over; None when it is not within `seconds`.

        `receive` tells when the client leaves. That, and the end of this gateway, end the wait, too. Never
        raises for trouble with the database.
        """
        told: asyncio.Future[Told] = self._loop.create_future()
        leaving = self._loop.create_task(_left(receive))
        self._waiters[told] = wanted
        self._counted(len(self._waiters))
        self._youngest = self._loop.time()
        self._came.set()
        if self._task is None:
            self._task = self._loop.create_task(self._ask())
        try:
            either: set[asyncio.Future[Any]] = {told, leaving}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return told.result() if told.done() and not told.cancelled() else None
        finally:
            leaving.cancel()
            self._waiters.pop(told, None)
            self._counted(len(self._waiters))

    def close(self) -> None:
        """Nobody waits any longer: all get what they have."""
        self._closed = True
        for told in self._waiters:
            told.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _ask(self) -> None:
        """Ask as long as somebody waits."""
        took, patience = 0.0, 0.0
        asked = self._loop.time()
        try:
            while self._waiters:
                await self._pause(asked, took, patience)
                wanted = list(dict.fromkeys(self._waiters.values()))
                if not wanted:
                    return
                began = self._loop.time()
                try:
                    self._tell(await self._look(wanted))
                    patience = 0.0
                except NoAnswer:
                    patience = min(MAX_PATIENCE, patience * 2 or PATIENCE)
                asked = self._loop.time()
                took = asked - began
        finally:
            self._task = None

    async def _pause(self, since: float, took: float, patience: float) -> None:
        """Return when it is time for the next query; a message that has just come makes it sooner."""
        while True:
            self._came.clear()
            waited = self._loop.time() - self._youngest
            pause = max(FASTEST, min(waited / 20, SLOWEST), took * LOAD, patience)
            if (left := since + pause - self._loop.time()) <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._came.wait()
            except TimeoutError:
                return

    def _tell(self, found: Found) -> None:
        for told, wanted in self._waiters.items():
            if wanted in found and not told.done():
                told.set_result(found[wanted])


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def looker(questions: Questions) -> Look:
    """Asks the database."""

    async def look(wanted: list[Wanted]) -> Found:
        return await questions.ask(lambda database: _find(database, wanted))

    return look


def _find(database: Database, wanted: Iterable[Wanted]) -> Found:
    # Only here: a gateway without a database loads nothing of it.
    from forebay.storage.answers import answers_to
    from forebay.storage.queries import digests
    from forebay.storage.states import message_statuses

    known = message_statuses(database, list({w.id for w in wanted}))
    over = {w: known[w.id] for w in wanted if w.id in known and known[w.id].state in OVER}
    keyed = [(w, w.digest) for w in over if w.digest is not None]
    doubtful = [(w, digest) for w, digest in keyed if over[w].digest != digest.hex()]
    bodies = digests(database, list({w.id for w, _ in doubtful})) if doubtful else {}
    for w, digest in doubtful:
        status = over.pop(w)
        if any(digest.hex() == body.digest and body.id == w.id for body in bodies.get(w.id, ())):
            over[w] = status
        elif conflict_id_from_digest(w.id, digest) in (status.conflicts or ()):
            # Another message was first with this idempotency key, at a replica that we know nothing of.
            over[w] = dataclasses.replace(
                status, state="dead", reason="the idempotency key was used for another message", answer=None
            )
    asked = [w for w, s in over.items() if w.answer and s.answer is not None and s.answer.complete]
    answers = answers_to(database, [w.id for w in asked[:ANSWERS]]) if asked else {}
    later = set(asked[ANSWERS:])
    return {
        w: Told(status, answers.get(w.id) if w.answer else None)
        for w, status in over.items()
        if w not in later
    }


def after_waiting(
    accepted: Answer, seconds: float, status: MessageStatus | None, *, when_arrived: int = 201
) -> Answer:
    """
    `accepted`, a 202, with what became of the message meanwhile.

    `seconds` is what the client preferred, 0 if it did not say.
    """
    document = orjson.loads(accepted.body)
    if status is None:
        document["state"] = "journaled" if document["durability"] == "journaled" else "accepted"
    else:
        document["state"] = status.state
        if status.reason is not None:
            document["reason"] = status.reason
    body = orjson.dumps(document)
    replaced = {b"content-length": str(len(body)).encode()}
    if seconds:
        replaced[b"preference-applied"] = applied(seconds, accepted)
    headers = [(n, v) for n, v in accepted.headers if n not in replaced] + list(replaced.items())
    return Answer(status=when_arrived if document["state"] in ARRIVED else 202, headers=headers, body=body)


def applied(seconds: float, answer: Answer) -> bytes:
    """The value of Preference-Applied: what the answer says already, and that it was waited."""
    before = [value for name, value in answer.headers if name == b"preference-applied"]
    return b", ".join([*before, b"wait=%d" % seconds])
