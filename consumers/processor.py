"""Decides what becomes of each delivery of a batch. Pure: it does nothing, it only says."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from consumers.retry import RetryPolicy
from consumers.sinks import NotTried
from forebay.brokers.api import Ack, Attempt, DeadLetter, Delivery, Failure, Release, Retry, Settlement
from forebay.errors import (
    ForebayError,
    IdempotencyConflict,
    MessageRejected,
    RetryLater,
    SinkMisconfigured,
    SinkUnavailable,
)
from forebay.sinks import WriteResult

MAX_REASON = 500
"""Characters of a reason that are kept."""
MAX_DETAIL = 2_000
"""Characters of a detail that are kept: what travels in a broker's headers."""

FIRST_KEPT, LAST_KEPT = 1, 4
"""How many failed attempts travel with a message: how it began, and how it goes on."""
MAX_ATTEMPT_REASON = 200
"""Characters of the reason of each of these."""
MAX_ERROR_CLASS = 100

_LIBRARIES = tuple({sysconfig.get_path(p) for p in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """
    The decisions for one queue and its sink.

    success                      → Ack
    MessageRejected              → DeadLetter at once (IdempotencyConflict: under its new id)
    RetryLater                   → Retry after its own delay, until the attempts are used up
    SinkUnavailable, NotTried    → Release, as below: others of the batch had better luck
    anything else in a result    → Retry by policy, DeadLetter after the last attempt
    SinkUnavailable for all,
    SinkMisconfigured for all    → Release all: not the messages' fault, nothing is counted
    any other error for all      → as if every message had failed with it
    """

    retry: RetryPolicy
    destination: str
    gives_up: bool = True
    """False for the archiver: nothing expires, and what is rejected is tried again later."""
    worker: str = ""
    """Who works here, as "host:pid": for the history of what fails."""

    def expired(self, batch: Sequence[Delivery], now: datetime) -> list[Settlement]:
        """Dead letters for those whose time is over: they are never shown to the sink."""
        if not self.gives_up:
            return []
        return [
            DeadLetter(
                d,
                Failure(
                    reason=f"expired at {d.message.expires_at.isoformat(timespec='seconds')},"
                    " before it could be delivered",
                    error_class="expired",
                    destination=self.destination,
                ),
                history=d.history,
            )
            for d in batch
            if d.message.expires_at is not None and d.message.expires_at <= now
        ]

    def settle(
        self,
        batch: Sequence[Delivery],
        results: Sequence[WriteResult],
        now: datetime,
        seconds: float = 0.0,
    ) -> list[Settlement]:
        """
        One settlement per delivery, in the same order. The sink took `seconds` for all of them.

        Raises:
            ValueError: the results do not belong to these deliveries; a bug of the sink.
        """
        if [r.message_id for r in results] != [d.message.id for d in batch]:
            raise ValueError(
                f"sink {self.destination!r} answered {len(results)} results for {len(batch)} messages,"
                " or in another order; it must return one per delivery, aligned"
            )
        if not failures(results):
            return list(map(Ack, batch))
        return [
            Ack(d) if r.error is None else self._failed(d, r.error, now, seconds)
            for d, r in zip(batch, results, strict=True)
        ]

    def settle_failed_call(
        self, batch: Sequence[Delivery], error: Exception, now: datetime, seconds: float = 0.0
    ) -> list[Settlement]:
        """As `settle`, when the sink raised instead of returning results."""
        if isinstance(error, (SinkUnavailable, SinkMisconfigured)):
            # Not the messages' fault: an outage must not push them towards the dead letters.
            return [Release(d) for d in batch]
        return [self._failed(d, error, now, seconds) for d in batch]

    @staticmethod
    def outage(results: Sequence[WriteResult]) -> Exception | None:
        """What the breaker must hear of a call that did a part of its batch before the destination failed."""
        errors = failures(results)
        return next((e for e in errors if isinstance(e, (SinkUnavailable, SinkMisconfigured))), None)

    def _failed(self, delivery: Delivery, error: Exception, now: datetime, seconds: float) -> Settlement:
        if isinstance(error, (NotTried, SinkUnavailable, SinkMisconfigured)):
            return Release(delivery)
        failure = failure_of(error, self.destination)
        attempt = Attempt(
            number=delivery.attempt,
            failed_at=now,
            worker=self.worker,
            seconds=seconds,
            error_class=_cut(failure.error_class, MAX_ERROR_CLASS),
            reason=_cut(failure.reason, MAX_ATTEMPT_REASON),
        )
        history = shortened((*delivery.history, attempt))
        if isinstance(error, MessageRejected) and self.gives_up:
            new_id = error.new_id if isinstance(error, IdempotencyConflict) else None
            return DeadLetter(delivery, failure, new_id, history)
        # A delayed message, and one sent back from the dead letters, begins its life when it is due.
        since = max(delivery.message.accepted_at, delivery.message.not_before or delivery.message.accepted_at)
        age = (now - since).total_seconds()
        delay = self.retry.next_delay(delivery.attempt, error, age)
        if delay is None:
            return DeadLetter(delivery, failure, history=history)
        if isinstance(error, RetryLater):
            delay = max(0.0, error.delay)
        return Retry(delivery, delay, failure, history)


def failures(results: Sequence[WriteResult]) -> list[Exception]:
    return [r.error for r in results if r.error is not None]


def shortened(history: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """The first attempts and the last ones: what travels with a message must not grow with its tries."""
    if len(history) <= FIRST_KEPT + LAST_KEPT:
        return history
    return history[:FIRST_KEPT] + history[-LAST_KEPT:]


def failure_of(error: Exception, destination: str) -> Failure:
    """
    Why a message failed, in a form that may be listed and logged.

    What Forebay's own errors say is written to be read: it is the reason. The text
    of any other exception may quote the message ("invalid literal for int(): '4111…'"),
    so its reason is the class and the place in the code, and the text goes to `detail`,
    which is stored and never logged.
    """
    if isinstance(error, MessageRejected):
        return Failure(
            reason=_cut(str(error) or type(error).__name__, MAX_REASON),
            error_class=error.error_class,
            destination=destination,
            detail=_cut(error.detail, MAX_DETAIL),
        )
    if isinstance(error, ForebayError):
        return Failure(
            reason=_cut(str(error) or type(error).__name__, MAX_REASON),
            error_class=type(error).__name__,
            destination=destination,
            detail=_cut("" if error.__cause__ is None else _text(error.__cause__), MAX_DETAIL),
        )
    place = _place(error)
    return Failure(
        reason=_cut(type(error).__name__ + (f" at {place}" if place else ""), MAX_REASON),
        error_class=type(error).__name__,
        destination=destination,
        detail=_cut(_text(error), MAX_DETAIL),
    )


def _place(error: Exception) -> str | None:
    """The innermost line of code that is not a library's: where a reader would start to look."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*_LIBRARIES, "<frozen"))]
    if not frames:
        return None
    frame = (own or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}"


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _cut(text: str, limit: int) -> str:
    # NUL cannot be stored as text by PostgreSQL, and a lone surrogate cannot be encoded at all.
    text = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
