"""
What a broker driver implements, and all that the rest of the program may rely on.

Batches in, one aligned result per message out. Settlement is data: the processor
decides, and `Subscription.settle` is the one place that applies the decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from forebay.errors import PublishError, SettingsError
from forebay.message import Message

Durability = Literal["unsynced", "journaled", "synced", "replicated"]

DURABILITIES: tuple[Durability, ...] = ("unsynced", "journaled", "synced", "replicated")
"""From the weakest to the strongest; compare by index."""


@dataclass(slots=True, kw_only=True)
class PublishResult:
    """
    What became of one message of a `publish` call. Exactly one of `durability` and `error` is set.

    Never changed: one result may stand for many messages of a call.
    """

    message_id: str = ""
    """Which message; empty in a result that stands for many: results are aligned with what was published."""
    durability: Durability | None = None
    """How safe the message is now: what a 202 may promise."""
    error: PublishError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt at a message failed."""

    reason: str
    """For lists, logs and metrics: code, constraint and column, never row values."""
    error_class: str
    """Groups like with like: "CheckViolation", "expired", "idempotency-conflict"."""
    destination: str = ""
    """The sink that failed, by its `destination` name."""
    detail: str = field(default="", repr=False)
    """The destination's own text; it may hold row values, so it is stored and never logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One failed try of a message. A few of them travel with it; see `Delivery.history`."""

    number: int
    """1 for the first."""
    failed_at: datetime
    worker: str
    """The process that tried, as "host:pid"; empty where nobody told."""
    seconds: float
    """How long the call of the sink took that it failed in."""
    error_class: str
    reason: str
    """As in `Failure`, cut shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a message came to rest in a dead-letter queue. Travels with it on every broker."""

    failure: Failure
    queue: str
    """Where it was given up, and where a redrive sends it back to."""
    attempts: int
    """Counted tries, the last one included."""
    died_at: datetime
    original_id: str | None = None
    """The id it was sent with, when it rests here under another (`idempotency-conflict`)."""
    history: tuple[Attempt, ...] = ()
    """Its failed tries, the last one included, if it was tried at all: the first and the last few of many."""


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One message on loan to us. Every delivery is settled exactly once. Never changed in place."""

    message: Message
    queue: str
    attempt: int
    """1 for the first try; each `Retry` adds one, `Release` and crashes add none."""
    receipt: object = field(repr=False, compare=False)
    """Opaque; read only by the subscription that issued it."""
    deferrals: int = 0
    """How often it was handed back without counting, where the broker can tell."""
    death: Death | None = None
    """Set on what comes from a dead-letter queue."""
    history: tuple[Attempt, ...] = ()
    """What failed before, in this queue: what the last `Retry` gave it. Empty after a redrive."""


_new = object.__new__


def first_delivery(message: Message, queue: str, receipt: object) -> Delivery:
    """The loan of a message to which nothing has happened yet; made as `usual_message` makes messages."""
    made: Delivery = _new(Delivery)
    made.message = message
    made.queue = queue
    made.attempt = 1
    made.receipt = receipt
    made.deferrals = 0
    made.death = None
    made.history = ()
    return made


@dataclass(slots=True)
class Ack:
    """Done: forget the message. The one that is made for every message, so it is not frozen."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed: deliver again after `delay` seconds with `attempt` one higher, and with this `history`."""

    delivery: Delivery
    delay: float
    failure: Failure
    history: tuple[Attempt, ...] = ()
    """All that is to be known later, this attempt included."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    Give up: move the message to the queue's dead-letter queue, with the reason.

    `new_id` is the id it gets there, when it must not keep its own.
    """

    delivery: Delivery
    failure: Failure
    new_id: str | None = None
    history: tuple[Attempt, ...] = ()
    """What `Death.history` will be."""


@dataclass(frozen=True, slots=True)
class Release:
    """Not our turn: hand it back now, uncounted (shutdown, open breaker)."""

    delivery: Delivery


Settlement = Ack | Retry | DeadLetter | Release


def all_done(settlements: Sequence[Settlement]) -> bool:
    """Whether each of them is an Ack: the usual batch, of which nothing else need be asked one by one."""
    return set(map(type, settlements)) <= {Ack}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Where drivers honestly differ. Contract tests and the table in docs/drivers.md read these."""

    durability: Durability
    """The best that a publish can reach as configured."""
    ordering: Literal["none", "one_subscription", "by_key"]
    """
    Publish order is kept never, with a single subscription, or per ordering key. Through retries only
    per key, and only by an `ordered` subscription.
    """
    bounded: bool
    """Can refuse a publish with QueueFull."""
    max_body_bytes: int
    retry_delays: tuple[float, ...] | None
    """Seconds; a delay is made of steps of these, never early. None: any delay is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How much a queue holds. What the broker cannot tell is None, never guessed."""

    waiting: int | None
    """Ready to be received now, and not yet sent to any consumer."""
    scheduled: int | None
    """Waiting for their time: delayed, or between two attempts."""
    in_hand: int | None
    """On loan to a consumer, or sent to it and not received yet."""
    bytes: int | None
    """Bodies of all of these together."""
    oldest_age: float | None
    """Seconds since the oldest of these was accepted."""
    lag: float = 0.0
    """Seconds by which the oldest of these figures may be behind."""
    unknown: str = ""
    """Why what is None is None, as a clause; empty where everything is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """
    What one subscription knows of its queue and `Broker.depth` does not tell.

    No message is in two shares, so that those of all subscriptions of a queue, taken at
    about the same time, add up to the queue's figures.
    """

    in_hand: int
    """On loan, or sent to this subscription and not received yet."""
    waiting: int | None = None
    """Not yet sent to any subscription, where only this one will get them; None: `depth` tells."""
    scheduled: int | None = None
    """The same of those that wait for their time; None: nobody but the broker could know."""
    oldest_age: float | None = None
    """Seconds since the oldest of these was accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that an operator should know of a broker, in words."""

    check: str
    """What was looked at: "durability", "alarms", "queue orders". A word or two."""
    verdict: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""
    """What to do about it: a command or a setting."""


class Publisher(Protocol):
    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        """
        Store messages durably; return one result per message, in the same order.

        Per-message trouble is in the results, never raised, so half a batch can
        succeed. After `timeout` seconds what is still unanswered is reported as
        PublishUnconfirmed. Cancelling the call does not take the messages back.

        Raises:
            QueueNotFound: the queue was never declared; nothing was sent.
            BrokerUnavailable: no connection; nothing was sent.
            BrokerClosed: called after close().
        """
        ...


class Subscription(Protocol):
    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        """
        Return as soon as `max_messages` are ready, or `max_wait` seconds have passed.

        May return fewer than asked for, or none; never more, and never so many that
        the unsettled exceed `prefetch`. Undecodable messages never get here: the
        driver dead-letters them. Cancelling the call loses nothing.

        Raises:
            BrokerUnavailable: nothing was borrowed.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        """
        Apply settlements; return the deliveries that were no longer ours.

        Copies made by Retry and DeadLetter are durable before the original is let
        go, so a crash here duplicates and never loses. An Ack may be lost in a
        crash: delivery is at least once.

        Raises:
            BrokerUnavailable: whatever was not applied will be delivered again.
        """
        ...

    def share(self) -> Share:
        """What this subscription knows of its queue now; from memory, asking nobody."""
        ...


@runtime_checkable
class Broker(Publisher, Protocol):
    """
    One broker as one process sees it. Made by its driver's `open`, from a URL and settings.

    One instance belongs to one event loop. Methods may be called concurrently.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def identity(self) -> str:
        """
        Which broker this is: the same for every process and after every restart, another for another
        broker. Never with credentials. What the server calls itself, not how it was reached.
        """
        ...

    async def declare(self, queue: str) -> Durability:
        """
        Create the queue and its dead-letter queue. Idempotent.

        Returns what a publish to it can reach: less than `capabilities` say where the queue
        was made by others, and weaker.

        Raises:
            BrokerUnavailable: it may or may not have been created; call again.
        """
        ...

    async def declared_queues(self) -> list[str] | None:
        """The queues that exist, without their dead-letter queues; None where the broker cannot tell."""
        ...

    def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AbstractAsyncContextManager[Subscription]:
        """
        Lend messages of `queue`, at most `prefetch` unsettled at once.

        `queue` may be a dead-letter queue. Leaving the context releases what is
        unsettled, uncounted.

        With `ordered`, where `capabilities.ordering` is "by_key", a failure keeps the order too:

        - the messages of a key are lent in publish order, to one subscription at a time;
        - `Retry` parks its key: no later message of it is lent to anybody until the failed one is
          settled for good (Ack, DeadLetter). It comes first when its delay has passed, its `attempt`
          one higher, also after this process was killed;
        - who retries or releases one releases all that it holds of that key behind it. From the moment
          on that `settle` is called, `receive` returns nothing of the key until all of these are
          settled, and then in publish order again;
        - other keys, and messages without one, go on meanwhile. How many can be parked is the driver's
          to say; a delayed message (`not_before`) takes its place when it is due.

        Raises:
            QueueNotFound, BrokerUnavailable: on entering the context.
            SettingsError: `ordered`, and this broker cannot keep it.
        """
        ...

    async def depth(self, queue: str) -> Depth:
        """
        How much the queue holds; never takes a message off it to find out.

        Raises:
            QueueNotFound, BrokerUnavailable.
        """
        ...

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        """
        Judge the broker for its operator: how durable a confirmed message in these queues is and why,
        alarms, hazards of the server's version. Only reads.

        Raises:
            BrokerUnavailable.
        """
        ...

    async def ping(self) -> None:
        """Return if a publish would be taken now; raise BrokerUnavailable with the reason if not."""
        ...

    async def close(self) -> None:
        """Release connections, within a few seconds whatever the broker does. Idempotent."""
        ...


def refuse_ordered(ordered: bool, broker: str) -> None:
    """
    For the `subscribe` of drivers whose ordering is not "by_key".

    Raises:
        SettingsError: order by key was asked for.
    """
    if ordered:
        raise SettingsError(
            f'{broker} cannot keep the order of a key through failures; write order = "none" for the queue,'
            " or use a broker that orders by key (see docs/drivers.md)"
        )
