"""
The way in: whether a request may send its body, and how much of it is held.

A shell takes a request through `admit`, and tells `grow` what has come of the body; one whose body
is here, and whose headers are known, through `enter_whole`. What is decided on the message itself is
the ingest's (gateway/ingest.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from forebay.brokers.api import DURABILITIES, Broker, Durability
from forebay.message import Message
from gateway import permits
from gateway.admission import Admission
from gateway.answer import Answer, RawHeaders
from gateway.arriving import Arriving, Holder
from gateway.callers import ANYONE, Caller
from gateway.headers import HeaderReader, Meta, Refused, due_times
from gateway.metrics import GatewayMetrics
from gateway.outlets.publishing import Outlets
from gateway.problems import BODY_TOO_LARGE, DURABILITY_UNAVAILABLE, OVERLOADED, problem
from gateway.settings import GatewaySettings

Respond = Callable[[Answer], None]
RespondRaw = Callable[[bytes], None]
"""Takes a 202 as `AcceptedAnswers.raw` makes it."""


class Ticket:
    """One request in work, from its headers to its answer."""

    __slots__ = (
        "answered",
        "caller",
        "deadline",
        "inside",
        "key",
        "message",
        "meta",
        "placed",
        "queue",
        "reserved",
        "respond",
        "respond_raw",
    )

    message: Message
    respond: Respond
    respond_raw: RespondRaw | None
    deadline: float

    def __init__(self, queue: str, meta: Meta, caller: Caller) -> None:
        self.queue = queue
        self.caller = caller
        self.meta = meta
        self.key: str | None = None
        """The idempotency key, while it counts."""
        self.reserved = 0
        """Body bytes counted for it: those that are here."""
        self.answered = False
        self.respond_raw = None
        self.inside = True
        """It may still hold bytes and a place."""
        self.placed = False
        """Its body is whole, and it counts as in work."""


RANK: dict[Durability, int] = {level: rank for rank, level in enumerate(DURABILITIES)}


class Entrance:
    """Headers, limits, permits and memory of what arrives for one broker."""

    def __init__(
        self, broker: Broker | Outlets, settings: GatewaySettings, *, metrics: GatewayMetrics
    ) -> None:
        self._broker = broker
        self.max_body_bytes = min(settings.max_body_bytes, broker.capabilities.max_body_bytes)
        self._reader = HeaderReader(settings.keep_headers)
        self._admission = Admission(settings.max_in_flight, settings.max_in_flight_bytes)
        self._now = asyncio.get_running_loop().time
        self.bodies_on_their_way = Arriving(self._now)
        self._metrics = metrics
        self._failing: dict[str, float] = {}
        """Since when publishes to a queue fail, on the health's clock."""

    def admit(self, queue: str, headers: RawHeaders, caller: Caller = ANYONE) -> Ticket | Answer:
        """Whether the request may send its body, before anything of it is read; or why not."""
        try:
            meta = self._reader.read(headers)
        except Refused as refused:
            return self.refused(refused.answer)
        return self.enter(queue, meta, caller)

    def enter(
        self, queue: str, meta: Meta, caller: Caller = ANYONE, *, size: int | None = None
    ) -> Ticket | Answer:
        """The same for a request whose headers have been read; `size` is its length, if not meta's."""
        if size is None:
            size = meta.content_length or 0
        if caller is not ANYONE:
            refused = permits.barred(caller, queue) or permits.too_large(caller, size)
            if refused is not None:
                return self.refused(refused, caller)
        if meta.encoding is not None:
            # What it will be uncompressed only reading tells.
            size = min(size, self.max_body_bytes)
        if size > self.max_body_bytes:
            return self.refused(self._too_large(f"The body is {size} bytes"))
        asked = meta.durability
        if asked is not None and RANK[asked] > RANK[best := self._broker.capabilities.durability]:
            return self.refused(
                problem(
                    DURABILITY_UNAVAILABLE,
                    f"Prefer: durability={asked} was asked for; this gateway's broker reaches"
                    f" {best!r}. Nothing was stored.",
                    durability=best,
                )
            )
        if not self._admission.fits(size) and not self._could_make_room(size):
            return self.refused(self._overloaded())
        if caller is not ANYONE:
            refused = permits.enter(caller, 1, size, trouble=bool(self._failing))
            if refused is not None:
                return self.refused(refused, caller)
        return Ticket(queue, meta, caller)

    def enter_whole(self, queue: str, meta: Meta, caller: Caller, size: int) -> Ticket | Answer:
        """
        `enter`, `grow` and `place` at once, for a message whose body is here, uncompressed.

        Where nothing stands against it, nothing can between the three; what does is found, and said, by them.
        """
        admission = self._admission
        if (
            size <= self.max_body_bytes
            and admission.count < admission.max_count
            and admission.size + size <= admission.max_size
            and meta.durability is None
            and (caller is ANYONE or permits.take_whole(caller, queue, size))
        ):
            admission.count += 1
            admission.size += size
            ticket = Ticket(queue, meta, caller)
            ticket.reserved = size
            ticket.placed = True
            return ticket
        entered = self.enter(queue, meta, caller, size=size)
        if isinstance(entered, Answer):
            return entered
        return (self.grow(entered, size) if size else None) or self.place(entered) or entered

    def place(self, ticket: Ticket) -> Answer | None:
        """Count a message that is whole as in work; an answer if there are too many."""
        if not self._admission.enter():
            return self.refuse(ticket, self._overloaded())
        ticket.placed = True
        caller = ticket.caller
        if caller is not ANYONE:
            full = permits.place(caller, trouble=bool(self._failing))
            if full is not None:
                return self.refuse(ticket, full)
        return None

    def grow(self, ticket: Ticket, received: int) -> Answer | None:
        """Account for a body of which `received` bytes are here; an answer if that is too many."""
        if received > self.max_body_bytes:
            self.abandon(ticket)
            return self.refused(self._too_large("The body has too many bytes"))
        more = received - ticket.reserved
        if more > 0:
            if not self._admission.grow(more) and not self._make_room(ticket, more):
                self.abandon(ticket)
                return self.refused(self._overloaded())
            ticket.reserved = received
            caller = ticket.caller
            if caller is not ANYONE:
                refused = permits.grow(caller, more, trouble=bool(self._failing))
                refused = permits.too_large(caller, received) or refused
                if refused is not None:
                    self.abandon(ticket)
                    return self.refused(refused, caller)
        return None

    def arriving(self, ticket: Ticket, wake: Callable[[], None]) -> None:
        """
        The body comes in pieces: it is given up when others need the room and it is slow.

        Then the ticket is not `inside` any more, and `wake` is called; the answer is `given_up`.
        """

        def give_up() -> None:
            self.abandon(ticket)
            wake()

        self.bodies_on_their_way.add(ticket, give_up)

    def arrived(self, ticket: Ticket) -> None:
        """No more pieces are waited for."""
        since = self.bodies_on_their_way.remove(ticket)
        if since is not None and ticket.inside:
            self._metrics.stage_seconds.labels("admit").observe(self._now() - since)

    def given_up(self) -> Answer:
        """The answer for a body that was given up for the sake of others."""
        return self.refused(self._overloaded())

    def abandon(self, ticket: Ticket) -> None:
        """The body will not come: forget the request. Does nothing to one that left already."""
        if ticket.inside:
            ticket.inside = False
            self._admission.release(ticket.reserved, ticket.placed)
            budget = ticket.caller.budget
            if budget is not None:
                budget.release(ticket.reserved, ticket.placed)

    def refuse(self, ticket: Ticket, answer: Answer) -> Answer:
        """Give the request's place back, with this answer."""
        self.abandon(ticket)
        return self.refused(answer, ticket.caller)

    def refused(self, answer: Answer, caller: Caller = ANYONE) -> Answer:
        """Count a request that no message was made of; returns the answer."""
        self._metrics.refused.labels(answer.problem).inc()
        if caller.name:
            self._metrics.refused_by_key.labels(caller.name, answer.problem).inc()
        return answer

    # ---- batches, which are read in pieces of any number

    def begin_batch(self, queue: str, headers: RawHeaders, caller: Caller) -> Ticket | Answer:
        """As `admit`, for a body of any length, of which `hold` counts what is in memory."""
        try:
            meta = self._reader.read(headers)
            due_times(meta, datetime.now(UTC))
        except Refused as refused:
            return self.refused(refused.answer, caller)
        meta.content_length = None
        return self.enter(queue, meta, caller)

    def hold(self, holder: Holder, more: int, caller: Caller, *, arrived: int = 0) -> bool:
        """
        Count `more` bytes of memory, if there is room for them, or slow bodies can make some.

        `arrived` of them have come over the wire, which the caller's quota is charged for.
        """
        budget = caller.budget
        if budget is not None and not budget.grow(more):
            return False
        if not self._admission.grow(more) and not self._make_room(holder, more):
            permits.shrink(caller, more)
            return False
        if caller.quota is not None:
            caller.quota.charge(arrived)
        holder.reserved += more
        return True

    def give_back(self, size: int, caller: Caller) -> None:
        """So many of the bytes that were held are gone."""
        self._admission.shrink(size)
        permits.shrink(caller, size)

    # ---- room

    def _could_make_room(self, size: int) -> bool:
        """Whether a message that does not fit would, in the place of slow bodies. Nothing is taken yet."""
        admission = self._admission
        return admission.count < admission.max_count and self.bodies_on_their_way.could_make_room(
            admission.over(size)
        )

    def _make_room(self, asking: Holder, more: int) -> bool:
        """Take bytes that do not fit, in the place of slow bodies."""
        admission = self._admission
        made = self.bodies_on_their_way.make_room(admission.over(more), asking=asking)
        return made and admission.grow(more)

    def _too_large(self, what: str) -> Answer:
        return problem(
            BODY_TOO_LARGE,
            f"{what}; at most {self.max_body_bytes} are taken. Nothing was stored.",
            limit=self.max_body_bytes,
        )

    def _overloaded(self) -> Answer:
        admission = self._admission
        return problem(
            OVERLOADED,
            f"{admission.count} messages of {admission.size} bytes are in work;"
            f" at most {admission.max_count} of {admission.max_size} bytes are held. Nothing was stored.",
        )
