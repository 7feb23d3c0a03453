"""
Every decision about accepting a message, apart from the server that carries it.

A shell (the ASGI endpoint) takes a request in at the entrance, reads the body within
what that allows, and hands it to `accept` with a function that gets the
answer. All of it is synchronous and runs on the event loop; nothing here knows
HTTP beyond header pairs and answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from forebay.brokers.api import DURABILITIES, Broker, Durability, Publisher, PublishResult
from forebay.errors import (
    BrokerError,
    BrokerUnavailable,
    DurabilityUnavailable,
    MessageTooLarge,
    NotSent,
    PublishUnconfirmed,
    QueueFull,
    QueueNotFound,
)
from forebay.ids import id_from_key, new_id
from forebay.message import Alike, Message, bodies_of, usual_message
from gateway.answer import AcceptedAnswers, Answer
from gateway.callers import ANYONE, Caller
from gateway.entrance import RANK, Entrance, Respond, RespondRaw, Ticket
from gateway.group_commit import GroupCommit
from gateway.headers import Refused, due_times
from gateway.health import Health
from gateway.idempotency import IdempotencyMemory, Known, Verdict, fingerprint
from gateway.metrics import GatewayMetrics
from gateway.outlets.publishing import Outlets
from gateway.outlets.shares import JournalShares
from gateway.problems import (
    DURABILITY_UNAVAILABLE,
    IDEMPOTENCY_CONFLICT,
    NOT_SENT,
    OUTCOME_UNKNOWN,
    broker_problem,
    problem,
)
from gateway.recent import RecentIds
from gateway.schemas import Schema
from gateway.settings import GatewaySettings

log = structlog.get_logger()


class Ingest(Entrance):
    """Admission, idempotency and group commit around one broker."""

    def __init__(
        self,
        broker: Broker | Outlets,
        settings: GatewaySettings,
        *,
        metrics: GatewayMetrics,
        health: Health,
        schemas: Mapping[str, Schema] | None = None,
    ) -> None:
        super().__init__(broker, settings, metrics=metrics)
        self.schemas = schemas or {}
        """What bodies must fit, by queue."""
        self._least = RANK[settings.min_durability]
        self._timeout = settings.request_timeout
        self._debug = log.is_enabled_for(logging.DEBUG)
        self._shares = JournalShares(settings.journal_max_bytes)
        self._stamped_at = -1.0
        self._stamped = datetime.now(UTC)
        self._memory: IdempotencyMemory[Ticket] = IdempotencyMemory(settings.idempotency_memory)
        self._answers = AcceptedAnswers()
        self._health = health
        self.recent = RecentIds()
        self._commit: GroupCommit[Ticket] = GroupCommit(
            broker,
            timeout=settings.request_timeout,
            settled=self._settled,
            expired=self._expired,
            choose=self._choose if isinstance(broker, Outlets) else None,
        )
        self._usual = self.publisher_for(None, ANYONE)
        """For whoever asks for nothing and shares the journal with nobody."""

    # ---- what a shell calls

    def accept(
        self,
        ticket: Ticket,
        body: bytes,
        respond: Respond,
        *,
        respond_raw: RespondRaw | None = None,
        key: str | None = None,
    ) -> None:
        """
        Publish the message; `respond` gets the answer, exactly once, within the request's time.

        It may be called before this returns. That the client went away meanwhile
        changes nothing: what was handed in is published. With `respond_raw`, a 202 goes there instead.
        `key` is the idempotency key, if not meta's.
        """
        ticket.respond = respond
        ticket.respond_raw = respond_raw
        if not ticket.placed and (full := self.place(ticket)) is not None:
            respond(full)
            return
        schema = self.schemas.get(ticket.queue)
        if schema is not None and (refusal := schema.refusal(body)) is not None:
            respond(self.refuse(ticket, refusal))
            return
        meta = ticket.meta
        now = self._stamp()
        times = None
        if meta.delay is not None or meta.deliver_at is not None or meta.ttl is not None:
            try:
                times = due_times(meta, now)
            except Refused as refused:
                respond(self.refuse(ticket, refused.answer))
                return
        if key is None:
            key = meta.idempotency_key
        ticket.key = key
        message = ticket.message = usual_message(
            new_id() if key is None else id_from_key(ticket.caller.tenant, ticket.queue, key),
            body,
            now,
            meta.ordering_key,
            meta.kept,
            meta.content_type,
        )
        if times is not None:
            message.not_before, message.expires_at = times
        if key is None:
            self._commit.add(ticket.queue, ticket)
        else:
            self._accept_keyed(ticket, message)

    def _stamp(self) -> datetime:
        """What time it is, by the loop's clock: on uvloop the same for all that comes in a millisecond."""
        at = self._now()
        if at != self._stamped_at:
            self._stamped_at = at
            self._stamped = datetime.now(UTC)
        return self._stamped

    def unknown(self, ticket: Ticket) -> Answer:
        """The answer for a request whose outcome can no longer be waited for."""
        ticket.answered = True
        self.count(ticket.queue, OUTCOME_UNKNOWN.name)
        return problem(
            OUTCOME_UNKNOWN,
            "The broker did not confirm the message in time; it may or may not be stored."
            " Send it again with the same Idempotency-Key, or look the id up first.",
            id=ticket.message.id,
            queue=ticket.queue,
        )

    def publisher_for(self, asked: Durability | None, caller: Caller) -> Publisher:
        """What stores the caller's messages no less safely than is asked for, and than the settings want."""
        if not isinstance(self._broker, Outlets):
            return self._broker
        wanted = self._least if asked is None else max(self._least, RANK[asked])
        shares, share = self._shares, caller.journal_share
        # Almost always there is nothing in the journal, and nothing to find out.
        room = share == 1.0 or not shares.total or shares.has_room(caller.tenant, share, self._held)
        return self._broker.reaching(DURABILITIES[wanted], journaled=room)

    def journaled(self, caller: Caller, size: int) -> None:
        """A body of the caller's went into the journal."""
        self._shares.add(caller.tenant, size, self._held)

    @property
    def _held(self) -> int:
        """Bytes in the journal."""
        journal = self._broker.journal if isinstance(self._broker, Outlets) else None
        return 0 if journal is None else journal.size

    def _choose(self, ticket: Ticket) -> Publisher:
        asked, caller = ticket.meta.durability, ticket.caller
        if asked is None and caller.journal_share == 1.0:
            return self._usual
        return self.publisher_for(asked, caller)

    async def close(self) -> None:
        """Wait until everything handed in has its outcome; the requests' deadlines bound this."""
        await self._commit.close()

    # ---- for batches, which account for their bytes and publishes themselves

    def claim(self, message: Message) -> Verdict | Known:
        """
        What to do with a message that has an idempotency key.

        NEW is to be published, and then confirmed or released; of a TWIN a ticket is to `join`.
        """
        return self._memory.claim(message.id, fingerprint(message.body, message.content_type, message.key))

    def claim_all(self, messages: Alike) -> bool:
        """Claim all of these, if every one is NEW; else none."""
        content_type, key = messages.common.content_type, messages.common.key
        fingerprints = [fingerprint(body, content_type, key) for body in messages.bodies]
        return self._memory.claim_all(messages.ids, fingerprints)

    def join(self, twin: Ticket) -> None:
        """The ticket's message is being published for another; its outcome is answered to this one, too."""
        self._memory.join(twin.message.id, twin)
        self._commit.watch(twin)

    # ---- idempotency

    def _accept_keyed(self, ticket: Ticket, message: Message) -> None:
        digest = fingerprint(message.body, message.content_type, message.key)
        verdict = self._memory.claim(message.id, digest, ticket)
        if verdict is Verdict.NEW:
            self._commit.add(ticket.queue, ticket)
        elif verdict is Verdict.TWIN:
            message.body = b""  # the first one's is published; hold no second copy
            self._commit.watch(ticket)
        elif isinstance(verdict, Known):
            self._answer_duplicate(ticket, verdict.durability)
            self.abandon(ticket)
        elif ticket.meta.keeps_conflicts:
            # Published like a message of no key, which this process need not remember.
            ticket.key = None
            self._commit.add(ticket.queue, ticket)
        else:
            self._answer(
                ticket,
                problem(
                    IDEMPOTENCY_CONFLICT,
                    f"This Idempotency-Key was already used for another message to queue {ticket.queue!r};"
                    " that message is not touched, and this one was not stored.",
                    id=message.id,
                    queue=ticket.queue,
                ),
            )
            self.abandon(ticket)

    # ---- outcomes, called by the group commit

    def _settled(
        self,
        queue: str,
        tickets: list[Ticket],
        outcomes: Sequence[PublishResult | BrokerError],
        seconds: float,
    ) -> None:
        # The first has waited longest; its deadline tells since when.
        waited = self._now() - seconds - (tickets[0].deadline - self._timeout)
        self._metrics.commit_seconds.observe(max(0.0, waited))
        stored: dict[Durability, list[Ticket]] = {}
        trouble: BrokerError | None = None
        first = outcomes[0]
        if isinstance(first, PublishResult) and first.durability and outcomes.count(first) == len(tickets):
            stored[first.durability] = tickets  # nearly always one result stands for all
        else:
            for ticket, outcome in zip(tickets, outcomes, strict=True):
                error = outcome.error if isinstance(outcome, PublishResult) else outcome
                if error is None:
                    assert isinstance(outcome, PublishResult)
                    assert outcome.durability is not None, "a result has a durability or an error"
                    stored.setdefault(outcome.durability, []).append(ticket)
                    continue
                if not isinstance(error, MessageTooLarge):
                    trouble = error
                self._failed(queue, ticket, error)
        accepted: list[Message] = []
        for durability, these in stored.items():
            accepted += self._stored(queue, these, durability)
        self.published(queue, accepted, len(tickets), trouble, seconds)

    def _failed(self, queue: str, ticket: Ticket, error: BrokerError) -> None:
        self.abandon(ticket)
        if not ticket.answered:
            self._answer(ticket, broker_problem(error, message_id=ticket.message.id, queue=queue))
        if ticket.key is not None:
            self.release(ticket.message.id, queue, error)

    def _stored(self, queue: str, tickets: list[Ticket], durability: Durability) -> list[Message]:
        """Answer all of these; returns their messages."""
        messages = [ticket.message for ticket in tickets]
        recent = self.recent.room(queue, durability, len(tickets))
        size = places = 0
        keyed: list[str] = []
        for ticket, message in zip(tickets, messages, strict=True):
            recent[message.id] = message.accepted_at
            if ticket.inside:
                ticket.inside = False
                size += ticket.reserved
                places += ticket.placed
                budget = ticket.caller.budget
                if budget is not None:
                    budget.release(ticket.reserved, ticket.placed)
            if ticket.key is not None:
                keyed.append(message.id)
            if durability == "journaled":
                self.journaled(ticket.caller, len(message.body))
        self._admission.release(size, places)
        if keyed:
            self.confirm_all(keyed, durability)
        usual = self._answers.of(queue, durability, False, None) if RANK[durability] >= self._least else None
        answered = 0
        for ticket, message in zip(tickets, messages, strict=True):
            if ticket.answered:
                continue
            respond_raw = ticket.respond_raw
            if usual is not None and respond_raw is not None and ticket.meta.durability is None:
                ticket.answered = True
                answered += 1
                respond_raw(usual.raw(message.id))
            else:
                answered += self._answer_accepted(ticket, durability, duplicate=False)
        if answered:
            self.count(queue, "accepted", answered)
        return messages

    def confirm(self, message_id: str, durability: Durability) -> None:
        """A claimed message is stored: remember it, and answer its twins."""
        for twin in self._memory.confirm(message_id, durability):
            self.abandon(twin)
            if not twin.answered:
                self._answer_duplicate(twin, durability)

    def confirm_all(self, ids: Sequence[str], durability: Durability) -> None:
        """The same for many."""
        if not self._memory.confirm_all(ids, durability):
            for message_id in ids:
                self.confirm(message_id, durability)

    def release(self, message_id: str, queue: str, error: BrokerError) -> None:
        """A claimed message is not stored, or nobody knows: so are its twins."""
        for twin in self._memory.release(message_id):
            self.abandon(twin)
            if not twin.answered:
                self._answer(twin, broker_problem(error, message_id=message_id, queue=queue))

    def published(
        self, queue: str, accepted: Sequence[Message], sent: int, trouble: BrokerError | None, seconds: float
    ) -> None:
        """Account for a publish of `sent` messages that took `seconds`."""
        figures = self._metrics.of_publishes(queue)
        figures.body_bytes.inc(sum(map(len, bodies_of(accepted))))
        figures.seconds.observe(seconds)
        figures.messages.observe(sent)
        self._metrics.confirm_seconds.observe(seconds)
        if self._debug:
            log.debug(
                "published", queue=queue, sent=sent, seconds=round(seconds, 4), ids=[m.id for m in accepted]
            )
        self._metrics.in_flight.set(self._admission.count)
        self._metrics.in_flight_bytes.set(self._admission.size)
        self._note(queue, len(accepted), trouble, seconds)

    def _note(self, queue: str, accepted: int, trouble: BrokerError | None, seconds: float) -> None:
        """Tell readiness, and the log once when trouble begins and once when it is over."""
        if trouble is not None:
            if not isinstance(trouble, QueueNotFound):
                self._health.failed(str(trouble))
            if queue not in self._failing:
                self._failing[queue] = self._health.now()
                expected = isinstance(
                    trouble,
                    (BrokerUnavailable, DurabilityUnavailable, NotSent, PublishUnconfirmed, QueueFull),
                )
                (log.warning if expected else log.error)(
                    "publishes fail",
                    queue=queue,
                    error=f"{type(trouble).__name__}: {trouble}",
                    seconds=round(seconds, 3),
                )
        elif accepted:
            self._health.published()
            since = self._failing.pop(queue, None)
            if since is not None:
                log.info(
                    "publishes succeed again",
                    queue=queue,
                    after=round(self._health.now() - since, 1),
                )

    def _expired(self, ticket: Ticket, sent: bool) -> None:
        if sent:
            # Counted in until its publish ends: the message is still in memory. A
            # twin holds nothing.
            if not ticket.message.body:
                self.abandon(ticket)
            ticket.respond(self.unknown(ticket))
            return
        twins: list[Ticket] = []
        if ticket.key is not None:
            twins = self._memory.release(ticket.message.id)
        answer = problem(
            NOT_SENT,
            "The message waited for its turn until the request's deadline and was certainly not stored.",
            queue=ticket.queue,
            id=ticket.message.id,
        )
        self._health.failed("messages waited for their turn until their deadline")
        for waiting in (ticket, *twins):
            self.abandon(waiting)
            if not waiting.answered:
                self._answer(waiting, answer)

    # ---- answers

    def _answer_accepted(self, ticket: Ticket, durability: Durability, *, duplicate: bool) -> bool:
        """Whether it was a 202, which the caller counts."""
        asked = ticket.meta.durability
        if asked is None and RANK[durability] >= self._least:
            shortfall = None
        else:
            shortfall = self.shortfall(durability, asked)
        if shortfall is not None:
            self._answer(
                ticket,
                problem(
                    DURABILITY_UNAVAILABLE,
                    shortfall,
                    durability=durability,
                    id=ticket.message.id,
                    queue=ticket.queue,
                ),
            )
            return False
        ticket.answered = True
        raw, made = ticket.respond_raw, self._answers.of(ticket.queue, durability, duplicate, asked)
        if raw is None:
            ticket.respond(made.answer(ticket.message.id))
        else:
            raw(made.raw(ticket.message.id))
        return True

    def _answer_duplicate(self, ticket: Ticket, durability: Durability) -> None:
        if self._answer_accepted(ticket, durability, duplicate=True):
            self.count(ticket.queue, "duplicate")

    def shortfall(self, durability: Durability, asked: Durability | None) -> str | None:
        """In words, if a stored message is less safe than the settings or its sender want it."""
        wanted = self._least if asked is None else max(self._least, RANK[asked])
        if RANK[durability] >= wanted:
            return None
        return f"The message is stored, but only {durability!r}; {DURABILITIES[wanted]!r} was asked for."

    def _answer(self, ticket: Ticket, answer: Answer) -> None:
        ticket.answered = True
        self.count(ticket.queue, answer.problem)
        ticket.respond(answer)

    def count(self, queue: str, outcome: str, messages: int = 1) -> None:
        """Count messages by what became of them: accepted, duplicate, or the name of a problem."""
        self._metrics.messages.labels(queue, outcome).inc(messages)
