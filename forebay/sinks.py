"""What a sink implements: where messages end up, one aligned result per message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forebay.brokers.api import Delivery


@dataclass(slots=True, kw_only=True)
class WriteResult:
    """What became of one message of a `write` call."""

    message_id: str
    error: Exception | None = None
    duplicate: bool = False
    """Already stored by an earlier attempt. Counts as success."""


_new = object.__new__


def all_stored(batch: Sequence[Delivery]) -> list[WriteResult]:
    """The results of a batch that went as it should, made without the cost of keyword arguments."""
    results: list[WriteResult] = []
    for delivery in batch:
        made: WriteResult = _new(WriteResult)
        made.message_id = delivery.message.id
        made.error = None
        made.duplicate = False
        results.append(made)
    return results


class Sink(Protocol):
    @property
    def destination(self) -> str:
        """A stable name: the breaker's, the once-only records' and the dead letters'."""
        ...

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        """
        Store messages; return one result per delivery, in the same order.

        Writing the same id twice has one effect, also within one batch. A
        MessageRejected in a result is final, a RetryLater names its own delay. A
        SinkUnavailable or SinkMisconfigured in a result is the destination's fault, met
        when others were done: the message is handed back, uncounted, and the breaker
        hears of it. Any other error in a result is worth another try by policy.

        Raises:
            SinkUnavailable: nothing was stored; try the same batch again later.
            SinkMisconfigured: nothing was stored, and nothing will be until someone acts.
        """
        ...

    async def probe(self) -> None:
        """
        Return if a write could work now.

        A sink may have an attribute `cheap_probe`: true if this may be called twice a second while the
        destination is away. Then its return is noticed at once.

        Raises:
            SinkUnavailable, SinkMisconfigured: with the reason.
        """
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...
