"""Chunks of batches on their way to the broker: no ticket, no future and no closure per message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Sequence
from datetime import datetime
from functools import partial
from operator import attrgetter

import orjson
import structlog

from forebay.brokers.api import Durability, PublishResult
from forebay.errors import BrokerError, MessageTooLarge, PublishUnconfirmed
from forebay.message import Alike, Message, bodies_of, ids_of
from gateway.answer import Answer
from gateway.batches.results import Results, Span
from gateway.entrance import Ticket
from gateway.group_commit import GRACE, REPORT
from gateway.idempotency import Known, Verdict
from gateway.ingest import Ingest
from gateway.problems import (
    DURABILITY_UNAVAILABLE,
    IDEMPOTENCY_CONFLICT,
    KINDS,
    NOT_SENT,
    OUTCOME_UNKNOWN,
    Kind,
    broker_error,
)

log = structlog.get_logger()

CONFLICT = (
    "This idempotency key was already used for another message to this queue; that message is not"
    " touched, and this one was not stored."
)


NO_TIME = "The broker took all the time there is for the items before; this one was not sent, and not stored."
BEHIND = "An item before this one, of the same ordering key, was not stored; so this one was not sent."
MOST_KEYS = 1_000


class Chunk:
    """Some items of one batch, in a row, and the messages among them that go to the broker together."""

    __slots__ = ("accepted_at", "claimed", "keyed", "messages", "places", "size", "span")

    def __init__(
        self,
        span: Span,
        messages: Sequence[Message],
        places: Sequence[int],
        keyed: Collection[int],
        size: int,
        *,
        accepted_at: datetime,
    ) -> None:
        self.span = span
        self.messages = messages
        self.places = places
        """Where in the span each message is."""
        self.keyed = keyed
        """Places of messages with an idempotency key."""
        self.claimed: Collection[int] = ()
        """Those of them that nobody else has published or is publishing."""
        self.size = size
        """Bytes counted for it until it is settled."""
        self.accepted_at = accepted_at

    def withhold(self, keys: Container[str | None], code: int) -> None:
        """Take out the messages of these ordering keys, with this code."""
        left = [n for n, message in enumerate(self.messages) if message.key not in keys]
        for place in set(self.places).difference(self.places[n] for n in left):
            self.span.codes[place] = code
        self.messages = [self.messages[n] for n in left]
        self.places = [self.places[n] for n in left]


class Course:
    """What one batch is told while its chunks are published."""

    def __init__(self, ticket: Ticket, results: Results) -> None:
        self.ticket = ticket
        self.results = results
        self.running = 0
        """Publishes, and messages that wait for somebody else's."""
        self.stopped: tuple[Kind, str] | None = None
        """Why nothing more is to be sent."""
        self.failed_keys: set[str] = set()
        """Ordering keys of messages that were not stored: nothing of them may be sent after these."""
        self.counted: list[int] = []
        """Codes of items that somebody else has counted in the metrics."""
        self.changed = asyncio.Event()
        self.on_settled: Callable[[], None] = self.changed.set

    def ended(self) -> None:
        self.running -= 1
        self.changed.set()
        self.on_settled()

    def stored(self, ingest: Ingest, durability: Durability, *, duplicate: bool = False) -> int:
        """The code of an item that is stored so durably."""
        shortfall = ingest.shortfall(durability, self.ticket.meta.durability)
        if shortfall is not None:
            return self.results.failed(DURABILITY_UNAVAILABLE, shortfall, durability)
        return self.results.stored("duplicate" if duplicate else "ok", durability)


class Lane:
    """
    Publishes the chunks of all batches of one gateway.

    A chunk that was handed in is published and accounted for, whatever becomes of its request.
    """

    def __init__(self, ingest: Ingest, *, timeout: float) -> None:
        self._ingest = ingest
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until everything handed in has its outcome; the publishes' timeouts bound this."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def start(self, course: Course, chunk: Chunk) -> None:
        """Publish a chunk. Until the outcome is known its items' codes say that nobody knows."""
        if chunk.keyed:
            self._claim(course, chunk)
        if not chunk.messages:
            self._ingest.give_back(chunk.size, course.ticket.caller)
            return
        course.running += 1
        task = self._loop.create_task(self._publish(course, chunk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- idempotency

    def _claim(self, course: Course, chunk: Chunk) -> None:
        """Leave in the chunk what no other request has published or is publishing."""
        messages = chunk.messages
        if isinstance(messages, Alike) and self._ingest.claim_all(messages):
            chunk.claimed = chunk.places
            return
        claimed: set[int] = set()
        fresh: list[Message] = []
        places: list[int] = []
        codes = chunk.span.codes
        for place, message in zip(chunk.places, messages, strict=True):
            if place in chunk.keyed:
                verdict = self._ingest.claim(message)
                if verdict is Verdict.TWIN:
                    self._join(course, chunk.span, place, message)
                    continue
                if verdict is Verdict.CONFLICT:
                    codes[place] = course.results.failed(IDEMPOTENCY_CONFLICT, CONFLICT)
                    continue
                if isinstance(verdict, Known):
                    codes[place] = course.stored(self._ingest, verdict.durability, duplicate=True)
                    continue
                claimed.add(place)
            fresh.append(message)
            places.append(place)
        chunk.messages, chunk.places, chunk.claimed = fresh, places, claimed

    def _join(self, course: Course, span: Span, place: int, message: Message) -> None:
        """Rare: the same message is just being published; what comes of it is what comes of this one."""
        ticket = course.ticket
        twin = Ticket(ticket.queue, ticket.meta, ticket.caller)
        twin.message = Message(id=message.id, body=b"", accepted_at=message.accepted_at)
        twin.respond = partial(self._joined, course, span, place)
        course.running += 1
        self._ingest.join(twin)

    def _joined(self, course: Course, span: Span, place: int, answer: Answer) -> None:
        said = orjson.loads(answer.body)
        if answer.status == 202:
            span.codes[place] = course.results.stored("duplicate", said["durability"])
        else:
            kind = KINDS[answer.problem]
            span.codes[place] = course.results.failed(kind, said["detail"], said.get("durability"))
        course.counted.append(span.codes[place])
        course.ended()

    # ---- publishing

    async def _publish(self, course: Course, chunk: Chunk) -> None:
        queue = course.ticket.queue
        started = self._loop.time()
        outcomes: Sequence[PublishResult | BrokerError]
        count = len(chunk.messages)
        try:
            async with asyncio.timeout(self._timeout + GRACE):
                ticket = course.ticket
                publisher = self._ingest.publisher_for(ticket.meta.durability, ticket.caller)
                outcomes = await publisher.publish(
                    queue, chunk.messages, timeout=self._timeout * (1 - REPORT)
                )
            if len(outcomes) != count:
                raise RuntimeError(f"{len(outcomes)} results for {count} messages")
        except BrokerError as error:
            outcomes = [error] * count
        except TimeoutError:
            outcomes = [PublishUnconfirmed("the broker did not report in time")] * count
        except asyncio.CancelledError:
            self._settle(course, chunk, [PublishUnconfirmed("stopped while publishing")] * count, started)
            raise
        except Exception:
            # A driver may only raise BrokerErrors; after anything else nothing is known.
            log.exception("publish failed unexpectedly", queue=queue, messages=count)
            outcomes = [PublishUnconfirmed("the driver failed unexpectedly")] * count
        self._settle(course, chunk, outcomes, started)

    def _settle(
        self, course: Course, chunk: Chunk, outcomes: Sequence[PublishResult | BrokerError], started: float
    ) -> None:
        queue = course.ticket.queue
        seconds = self._loop.time() - started
        durability = _one_durability(outcomes)
        accepted: Sequence[Message]
        trouble: BrokerError | None = None
        if durability is None:
            accepted, trouble = self._settle_each(course, chunk, outcomes)
        else:
            accepted = chunk.messages
            self._settle_all(course, chunk, durability)
        self._ingest.published(queue, accepted, len(outcomes), trouble, seconds)
        self._ingest.give_back(chunk.size, course.ticket.caller)
        chunk.messages = ()
        if not accepted and trouble is not None and seconds > self._timeout / 2:
            course.stopped = NOT_SENT, NO_TIME
        elif len(course.failed_keys) > MOST_KEYS:
            course.stopped = NOT_SENT, BEHIND
        course.ended()

    def _settle_all(self, course: Course, chunk: Chunk, durability: Durability) -> None:
        """The usual outcome: every message is stored, so durably."""
        ingest, caller, queue = self._ingest, course.ticket.caller, course.ticket.queue
        ids, codes = ids_of(chunk.messages), chunk.span.codes
        if durability == "journaled":
            ingest.journaled(caller, sum(map(len, bodies_of(chunk.messages))))
        ingest.recent.add_all(ids, queue, chunk.accepted_at, durability)
        code = course.stored(ingest, durability)
        for place in chunk.places:
            codes[place] = code
        if len(chunk.claimed) == len(ids):
            ingest.confirm_all(ids, durability)
        elif chunk.claimed:
            for place, message_id in zip(chunk.places, ids, strict=True):
                if place in chunk.claimed:
                    ingest.confirm(message_id, durability)

    def _settle_each(
        self, course: Course, chunk: Chunk, outcomes: Sequence[PublishResult | BrokerError]
    ) -> tuple[list[Message], BrokerError | None]:
        """Returns what was accepted, and an error that says why something was not, if one does."""
        queue, codes = course.ticket.queue, chunk.span.codes
        accepted: list[Message] = []
        trouble: BrokerError | None = None
        known: dict[Durability, int] = {}
        for place, message, outcome in zip(chunk.places, chunk.messages, outcomes, strict=True):
            durability = outcome.durability if isinstance(outcome, PublishResult) else None
            if durability is not None:
                accepted.append(message)
                if durability == "journaled":
                    self._ingest.journaled(course.ticket.caller, len(message.body))
                self._ingest.recent.add(message.id, queue, message.accepted_at, durability)
                code = known.get(durability)
                if code is None:
                    code = known[durability] = course.stored(self._ingest, durability)
                codes[place] = code
                if place in chunk.claimed:
                    self._ingest.confirm(message.id, durability)
            else:
                error = outcome.error if isinstance(outcome, PublishResult) else outcome
                assert error is not None, "a result has a durability or an error"
                kind, detail = broker_error(error, queue)
                codes[place] = course.results.failed(kind, detail)
                if not isinstance(error, MessageTooLarge):
                    trouble = error
                if place in chunk.claimed:
                    self._ingest.release(message.id, queue, error)
                if message.key is not None:
                    course.failed_keys.add(message.key)
        return accepted, trouble


def _one_durability(outcomes: Sequence[PublishResult | BrokerError]) -> Durability | None:
    """How durably all messages are stored, if all of them are, and are so alike."""
    try:
        found: set[Durability | None] = set(map(_durability, outcomes))
    except AttributeError:
        return None
    return found.pop() if len(found) == 1 else None


_durability = attrgetter("durability")


def unknown_code(results: Results) -> int:
    return results.failed(OUTCOME_UNKNOWN, "The broker did not confirm the message in time.")
