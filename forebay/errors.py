"""
Every error that crosses a boundary between Forebay's parts.

Client-library exceptions stop at the driver or sink that uses the library; what
others see is this tree, and each leaf exists because a caller does something
different about it.

ForebayError
├── SchemaMismatch             the database's tables are of another release (forebay.storage.schema)
├── TransientError             two writers met: the same batch again (forebay.storage.classify)
├── SettingsError              a setting is wrong or missing; the command exits with 2
├── BrokerError
│   ├── BrokerUnavailable      nothing was sent; the same call may work later
│   ├── BrokerClosed           used after close(); a bug in the caller
│   ├── QueueNotFound          never declared; a configuration mistake
│   ├── MessageDecodeError     stored bytes are not one of our messages
│   └── PublishError           about one message, carried in its PublishResult
│       ├── PublishRejected    certainly not stored
│       │   ├── DurabilityUnavailable  there is a place for it, but a less safe one than it asks for
│       │   ├── MessageTooLarge
│       │   ├── NotSent        for no fault of the message: worth another try, or another broker
│       │   └── QueueFull
│       │       └── JournalFull  the gateway's own journal
│       └── PublishUnconfirmed maybe stored; send again with the same id
└── SinkError
    ├── SinkUnavailable        the destination as a whole: release, open the breaker, count nothing
    │   └── Unavailable        the same, said by a handler
    ├── SinkMisconfigured      no permission, missing table: pause at once and alert; count nothing
    ├── RetryLater             this message, not now: retry after a delay of the handler's choice
    └── MessageRejected        this message, for ever: dead-letter it now
        ├── Reject             the same, said by a handler
        └── IdempotencyConflict  a known id with other bytes: dead-letter it under a new id

Anything else that a sink reports for one message is worth another try, by the
retry policy, and a dead letter after the last one.
"""

from __future__ import annotations


class ForebayError(Exception):
    """Base class of everything Forebay raises on purpose."""


class SettingsError(ForebayError):
    """A setting is wrong or missing. The text says which one and what to write instead."""


# ---- brokers


class BrokerError(ForebayError):
    """Base class of what a broker driver may raise."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached, so nothing was sent. Nothing about the call itself was wrong."""


class BrokerClosed(BrokerError):
    """The broker or subscription was used after close()."""


class QueueNotFound(BrokerError):
    """The queue was never declared."""

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"queue {queue!r} is not declared; add it to queue_names"
            f' (queue_names = "{queue}" in forebay.toml, or FOREBAY_QUEUE_NAMES={queue}), then restart'
        )
        self.queue = queue


class MessageDecodeError(BrokerError):
    """The broker handed over bytes that are not one of our messages."""


class PublishError(BrokerError):
    """One message could not be published."""


class PublishRejected(PublishError):
    """The broker refused the message; it is certainly not stored."""


class MessageTooLarge(PublishRejected):
    """The body is above the broker's limit. `size` and `limit` are in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"message body is {size} bytes; this broker takes at most {limit}")
        self.size = size
        self.limit = limit


class QueueFull(PublishRejected):
    """The queue, or the disk under it, is at its limit; back off and try again."""


class DurabilityUnavailable(PublishRejected):
    """What could take the message now is less durable than it asks for."""


class JournalFull(QueueFull):
    """The gateway's journal is at its limit, in bytes or age, or the disk under it is full."""


class NotSent(PublishRejected):
    """
    The broker did not get the message, for no fault of the message's own.

    A plain PublishRejected and MessageTooLarge are about the message, and final; this one is worth
    another try, or another broker.
    """


class PublishUnconfirmed(PublishError):
    """No answer in time. The message may be stored: send it again with the same id."""


# ---- sinks


class SinkError(ForebayError):
    """Base class of what a sink may raise or report."""


class SinkUnavailable(SinkError):
    """
    The destination as a whole is down or overloaded. Says nothing about the messages.

    `retry_after` is what the destination asked for, in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(SinkUnavailable):
    """Raised by a handler: what I depend on is down. The queue pauses; no attempt is burned."""


class SinkMisconfigured(SinkError):
    """The destination refuses us as such: no permission, a missing table. An operator must act."""


class RetryLater(SinkError):
    """Raised by a handler: try this message again in `delay` seconds; counts as an attempt."""

    def __init__(self, delay: float, reason: str = "the handler asked to be called later") -> None:
        super().__init__(reason)
        self.delay = delay


class MessageRejected(SinkError):
    """
    The destination will never take this message.

    The text names code, constraint and column, never row values; `detail` is the
    destination's own text, which may hold them and therefore is never logged.
    """

    def __init__(self, reason: str, *, error_class: str = "", detail: str = "") -> None:
        super().__init__(reason)
        self.error_class = error_class or type(self).__name__
        self.detail = detail


class Reject(MessageRejected):
    """Raised by a handler: this message can never be handled. It is dead-lettered with the reason."""


class IdempotencyConflict(MessageRejected):
    """
    The message's id is already stored with other bytes.

    `new_id` is the id under which the message rests among the dead letters: derived
    from the old id and the body, so that the same conflict met twice is one dead letter.
    """

    def __init__(self, message_id: str, new_id: str) -> None:
        super().__init__(
            f"id {message_id} is already stored with another body", error_class="idempotency-conflict"
        )
        self.message_id = message_id
        self.new_id = new_id
